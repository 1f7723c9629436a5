-- Of an item, and of no id, the newest event alone is read where it suffices, as of a cart and of a product: the same function (0001_log.sql
-- says what it answers, and why it is written so) with two more branches. Binaries of the release before, which asked for no such thing,
-- call it as well. Measured in the server alone, the lookups of an Add Item take 61 us where they took 53 (21 times 1,000 in turn).
CREATE OR REPLACE FUNCTION event_matching(
    l_types text[], l_after bigint[], l_newest boolean[], l_cart_id uuid[], l_item_id uuid[], l_product_id uuid[]
) RETURNS TABLE (lookup integer, event_id bigint, event_type text, payload bytea, more boolean)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH l AS MATERIALIZED (
        SELECT (ord - 1)::integer AS lookup, string_to_array(types, ',') AS types, after, newest, cart_id, item_id, product_id
        FROM unnest(l_types, l_after, l_newest, l_cart_id, l_item_id, l_product_id)
             WITH ORDINALITY AS l(types, after, newest, cart_id, item_id, product_id, ord)
    ), matching AS (
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM event e
            WHERE e.cart_id IS NOT NULL AND (e.cart_id, e.event_id) > (l.cart_id, l.after) AND (e.cart_id, e.event_id) <= (l.cart_id, 9223372036854775807)
              AND (l.item_id IS NULL OR e.item_id = l.item_id)
              AND (l.product_id IS NULL OR e.product_id = l.product_id)
              AND e.event_type = ANY (l.types)
            ORDER BY e.cart_id, e.event_id LIMIT 500
        ) e
        WHERE l.cart_id IS NOT NULL AND NOT l.newest
      UNION ALL
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM event e
            WHERE e.cart_id IS NOT NULL AND (e.cart_id, e.event_id) > (l.cart_id, l.after) AND (e.cart_id, e.event_id) <= (l.cart_id, 9223372036854775807)
              AND (l.item_id IS NULL OR e.item_id = l.item_id)
              AND (l.product_id IS NULL OR e.product_id = l.product_id)
              AND e.event_type = ANY (l.types)
            ORDER BY e.cart_id DESC, e.event_id DESC LIMIT 1
        ) e
        WHERE l.cart_id IS NOT NULL AND l.newest
      UNION ALL
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM event e
            WHERE e.item_id IS NOT NULL AND (e.item_id, e.event_id) > (l.item_id, l.after) AND (e.item_id, e.event_id) <= (l.item_id, 9223372036854775807)
              AND (l.product_id IS NULL OR e.product_id = l.product_id)
              AND e.event_type = ANY (l.types)
            ORDER BY e.item_id, e.event_id LIMIT 500
        ) e
        WHERE l.cart_id IS NULL AND l.item_id IS NOT NULL AND NOT l.newest
      UNION ALL
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM event e
            WHERE e.item_id IS NOT NULL AND (e.item_id, e.event_id) > (l.item_id, l.after) AND (e.item_id, e.event_id) <= (l.item_id, 9223372036854775807)
              AND (l.product_id IS NULL OR e.product_id = l.product_id)
              AND e.event_type = ANY (l.types)
            ORDER BY e.item_id DESC, e.event_id DESC LIMIT 1
        ) e
        WHERE l.cart_id IS NULL AND l.item_id IS NOT NULL AND l.newest
      UNION ALL
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM unnest(l.types) AS t(type) CROSS JOIN LATERAL (
                SELECT e.event_id, e.event_type, e.payload FROM event e
                WHERE e.product_id IS NOT NULL
                  AND (e.product_id, e.event_type, e.event_id) > (l.product_id, t.type, l.after)
                  AND (e.product_id, e.event_type, e.event_id) <= (l.product_id, t.type, 9223372036854775807)
                ORDER BY e.product_id, e.event_type, e.event_id LIMIT 500
            ) e
            ORDER BY e.event_id LIMIT 500
        ) e
        WHERE l.cart_id IS NULL AND l.item_id IS NULL AND l.product_id IS NOT NULL AND NOT l.newest
      UNION ALL
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM unnest(l.types) AS t(type) CROSS JOIN LATERAL (
                SELECT e.event_id, e.event_type, e.payload FROM event e
                WHERE e.product_id IS NOT NULL
                  AND (e.product_id, e.event_type, e.event_id) > (l.product_id, t.type, l.after)
                  AND (e.product_id, e.event_type, e.event_id) <= (l.product_id, t.type, 9223372036854775807)
                ORDER BY e.product_id DESC, e.event_type DESC, e.event_id DESC LIMIT 1
            ) e
            ORDER BY e.event_id DESC LIMIT 1
        ) e
        WHERE l.cart_id IS NULL AND l.item_id IS NULL AND l.product_id IS NOT NULL AND l.newest
      UNION ALL
        -- No id: every event of these types. Walks the log from `after`, so it is for those who are near the head.
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM event e
            WHERE e.event_id > l.after AND e.event_type = ANY (l.types)
            ORDER BY e.event_id LIMIT 500
        ) e
        WHERE l.cart_id IS NULL AND l.item_id IS NULL AND l.product_id IS NULL AND NOT l.newest
      UNION ALL
        -- The newest of these types: walks the log back from its head until there is one.
        SELECT l.lookup, e.* FROM l CROSS JOIN LATERAL (
            SELECT e.event_id, e.event_type, e.payload FROM event e
            WHERE e.event_id > l.after AND e.event_type = ANY (l.types)
            ORDER BY e.event_id DESC LIMIT 1
        ) e
        WHERE l.cart_id IS NULL AND l.item_id IS NULL AND l.product_id IS NULL AND l.newest
    ), measured AS (
        SELECT m.*,
               row_number() OVER w AS n,
               sum(octet_length(m.payload)) OVER w AS bytes,
               lead(octet_length(m.payload)) OVER w AS next_bytes
        FROM matching m
        WINDOW w AS (PARTITION BY m.lookup ORDER BY m.event_id)
    )
    SELECT m.lookup, m.event_id, m.event_type, m.payload, m.n = 500 OR coalesce(m.bytes + m.next_bytes > 262144, false)
    FROM measured m
    WHERE m.n = 1 OR m.bytes <= 262144
    ORDER BY m.lookup, m.event_id;
END;
