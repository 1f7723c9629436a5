-- The log: one table, one order, one writer.
--
-- The columns are disintegrate-postgres 4's (event_id, event_type, payload, inserted_at, a uuid column per domain id), so that what
-- was built on it can read this log, and one more: metadata.

CREATE TABLE event (
    -- The position. Assigned under the append lock as the last one plus the row's number: commit order, without gaps.
    event_id    bigint      PRIMARY KEY,
    event_type  text        NOT NULL,
    -- The event as JSON, tagged with its type from outside: {"CartCreated": {…}}
    payload     bytea       NOT NULL,
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cart_id     uuid,
    item_id     uuid,
    product_id  uuid,
    -- append_id, traceparent, correlation_id, causation_id
    metadata    jsonb       NOT NULL
);

CREATE INDEX event_cart_id ON event (cart_id, event_id) WHERE cart_id IS NOT NULL;
CREATE INDEX event_item_id ON event (item_id, event_id) WHERE item_id IS NOT NULL;
-- With the type: a popular product is in a million ItemAdded, and who asks for its InventoryChanged must not walk over them.
CREATE INDEX event_product_id ON event (product_id, event_type, event_id) WHERE product_id IS NOT NULL;

-- Which log this is. Differs in every database that was migrated by itself; event_log_id() adds what a restore changes.
CREATE TABLE event_log (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO event_log DEFAULT VALUES;

-- Up to where each consumer has translated a partition of a topic into the log: the offset of the next message to read.
CREATE TABLE translation_offset (
    consumer    text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    next_offset bigint      NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, topic, partition)
);

-- The identity of the log as a running process sees it: the cluster, its timeline (a point-in-time restore or a failover starts a
-- new one), the database and the log in it. A process that sees it change drops what it knew.
CREATE FUNCTION event_log_id() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT concat_ws(':',
        (SELECT system_identifier FROM pg_control_system()),
        CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        (SELECT id FROM public.event_log))
$$;

-- disintegrate-postgres asks this for the position up to which it may read. Here position order is commit order, so it is simply the
-- newest; STABLE, so that it sees what the statement that calls it sees.
CREATE FUNCTION event_store_current_epoch() RETURNS bigint
LANGUAGE sql STABLE AS $$ SELECT coalesce(max(event_id), 0) FROM event $$;

-- The events that match lookups. A lookup is (types, ids, after): an event matches when its type is among the types, it carries each
-- id that is given, and its position is greater than `after`; `newest` asks for the last such event alone. A lookup's answer is cut
-- after 500 events or 256 KiB; the last row of a cut answer has `more`.
--
-- One LATERAL … ORDER BY … LIMIT per leading id, and rows compared as (id, event_id) > (id, after) and <= (id, the largest): only the
-- index that leads with the id can serve that, so the plan is the same whatever ANALYZE last saw. Joins do not have that property; nor has
-- `id = … AND event_id > …`, which the primary key can serve by walking the log; and beside `id = …` a row comparison no longer says where
-- in the index to start.
CREATE FUNCTION event_matching(
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
        WHERE l.cart_id IS NULL AND l.item_id IS NOT NULL
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
        WHERE l.cart_id IS NULL AND l.item_id IS NULL AND l.product_id IS NULL
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

-- Everything up to a position is visible to a statement that sees that position: appends are serialised by this lock, held from an
-- append's first statement to the end of its commit.
CREATE FUNCTION event_lock() RETURNS void
LANGUAGE sql VOLATILE AS $$ SELECT pg_advisory_xact_lock(4841369599423283247) $$;

-- Many appends in one call, each with its own condition (its lookups) and its own outcome. Answers one row for the call
-- (lookup NULL, event_id the head before it), then the events that the lookups missed. An append none of whose lookups missed
-- anything is written, in the order of the appends, at head + 1, head + 2, …; the others are not.
--
-- VOLATILE, so that under READ COMMITTED each statement after the lock sees all that was committed before the lock was got.
--
-- SECURITY DEFINER: no service may write the log but through here. No SET search_path, which costs each call more than its lookups do:
-- every relation and type is named with its schema instead, and no service may make objects of any kind, temporary ones neither
-- (0002_roles).
CREATE FUNCTION event_append(
    l_append integer[], l_types text[], l_after bigint[], l_newest boolean[], l_cart_id uuid[], l_item_id uuid[], l_product_id uuid[],
    e_append integer[], e_type text[], e_payload bytea[], e_metadata text[], e_cart_id uuid[], e_item_id uuid[], e_product_id uuid[]
) RETURNS TABLE (lookup integer, event_id bigint, event_type text, payload bytea, more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
#variable_conflict use_column
DECLARE
    head    bigint;
    written integer;
    refused integer[] := '{}';
    bytes   bigint := 0;
    cut     integer;
BEGIN
    -- event_lock(), without a call of its own.
    PERFORM pg_advisory_xact_lock(4841369599423283247);
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'event_append must run under READ COMMITTED: it would check its conditions against an old snapshot'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    head := coalesce((SELECT e.event_id FROM public.event e ORDER BY e.event_id DESC LIMIT 1), 0);
    lookup := NULL; event_id := head; event_type := NULL; payload := NULL; more := false;
    RETURN NEXT;

    -- What is common: no lookup finds anything, and all is written, in one statement. Each lookup is a probe of the index that leads with
    -- its first id, by a row comparison and an order that no other index can serve, as in event_matching. Not by EXISTS: the planner drops
    -- the order from it, and takes another index when statistics are missing or old.
    INSERT INTO public.event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
    SELECT head + e.ord, e.type, e.payload, e.metadata::pg_catalog.jsonb, e.cart_id, e.item_id, e.product_id
    FROM unnest(e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id)
         WITH ORDINALITY AS e(type, payload, metadata, cart_id, item_id, product_id, ord)
    WHERE NOT EXISTS (
        SELECT FROM unnest(l_types, l_after, l_cart_id, l_item_id, l_product_id) AS l(types, after, cart_id, item_id, product_id)
        WHERE l.after > head OR CASE
            WHEN l.cart_id IS NOT NULL THEN (
                SELECT true FROM public.event e
                WHERE e.cart_id IS NOT NULL AND (e.cart_id, e.event_id) > (l.cart_id, l.after) AND (e.cart_id, e.event_id) <= (l.cart_id, 9223372036854775807)
                  AND (l.item_id IS NULL OR e.item_id = l.item_id)
                  AND (l.product_id IS NULL OR e.product_id = l.product_id)
                  AND e.event_type = ANY (string_to_array(l.types, ','))
                ORDER BY e.cart_id, e.event_id LIMIT 1)
            WHEN l.item_id IS NOT NULL THEN (
                SELECT true FROM public.event e
                WHERE e.item_id IS NOT NULL AND (e.item_id, e.event_id) > (l.item_id, l.after) AND (e.item_id, e.event_id) <= (l.item_id, 9223372036854775807)
                  AND (l.product_id IS NULL OR e.product_id = l.product_id)
                  AND e.event_type = ANY (string_to_array(l.types, ','))
                ORDER BY e.item_id, e.event_id LIMIT 1)
            WHEN l.product_id IS NOT NULL THEN EXISTS (
                SELECT FROM unnest(string_to_array(l.types, ',')) AS t(type) WHERE (
                    SELECT true FROM public.event e
                    WHERE e.product_id IS NOT NULL
                      AND (e.product_id, e.event_type, e.event_id) > (l.product_id, t.type, l.after)
                      AND (e.product_id, e.event_type, e.event_id) <= (l.product_id, t.type, 9223372036854775807)
                    ORDER BY e.product_id, e.event_type, e.event_id LIMIT 1))
            ELSE (
                SELECT true FROM public.event e
                WHERE e.event_id > l.after AND e.event_type = ANY (string_to_array(l.types, ','))
                ORDER BY e.event_id LIMIT 1)
        END);
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written > 0 AND written = cardinality(e_append) THEN
        RETURN;
    END IF;

    -- Something was missed by somebody: which events by whom, and the others are written.
    IF EXISTS (SELECT FROM unnest(l_after) AS a(after) WHERE a.after > head) THEN
        RAISE EXCEPTION 'a condition is ahead of the log, whose head is %: the log was reset or restored', head
            USING ERRCODE = 'CL001';
    END IF;
    FOR lookup, event_id, event_type, payload, more IN
        SELECT m.lookup, m.event_id, m.event_type, m.payload, m.more
        FROM public.event_matching(l_types, l_after, l_newest, l_cart_id, l_item_id, l_product_id) m
    LOOP
        -- What is answered under the lock is bounded: past 4 MiB each lookup is told its first event alone, and that there are more.
        CONTINUE WHEN lookup = cut;
        bytes := bytes + octet_length(payload);
        IF bytes > 4194304 THEN
            more := true;
            cut := lookup;
        END IF;
        refused := refused || l_append[lookup + 1];
        RETURN NEXT;
    END LOOP;
    INSERT INTO public.event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
    SELECT head + row_number() OVER (ORDER BY e.ord),
           e.type, e.payload, e.metadata::pg_catalog.jsonb, e.cart_id, e.item_id, e.product_id
    FROM unnest(e_append, e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id)
         WITH ORDINALITY AS e(append, type, payload, metadata, cart_id, item_id, product_id, ord)
    WHERE e.append <> ALL (refused)
    ORDER BY e.ord;
END $$;

-- The messages of a batch from one partition of a topic, as events, and the partition's next offset, in one step. The stored offset is
-- moved only from where this consumer was reading (`from_offset`, NULL where it never read); where another has moved it, nothing is
-- appended, and the answer says what is stored. Answers the position of the newest event.
CREATE FUNCTION event_append_from(
    for_consumer text, from_topic text, from_partition integer, from_offset bigint, to_offset bigint,
    e_type text[], e_payload bytea[], e_metadata text[], e_cart_id uuid[], e_item_id uuid[], e_product_id uuid[]
) RETURNS TABLE (moved boolean, stored_offset bigint, head bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
#variable_conflict use_column
BEGIN
    PERFORM pg_advisory_xact_lock(4841369599423283247);
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'event_append_from must run under READ COMMITTED: it would compare an old offset'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    head := coalesce((SELECT e.event_id FROM public.event e ORDER BY e.event_id DESC LIMIT 1), 0);
    stored_offset := (SELECT o.next_offset FROM public.translation_offset o
                      WHERE o.consumer = for_consumer AND o.topic = from_topic AND o.partition = from_partition);
    IF stored_offset IS DISTINCT FROM from_offset THEN
        moved := false;
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO public.translation_offset AS o (consumer, topic, partition, next_offset)
    VALUES (for_consumer, from_topic, from_partition, to_offset)
    ON CONFLICT ON CONSTRAINT translation_offset_pkey DO UPDATE SET next_offset = excluded.next_offset, updated_at = clock_timestamp();
    INSERT INTO public.event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
    SELECT head + e.ord, e.type, e.payload, e.metadata::pg_catalog.jsonb, e.cart_id, e.item_id, e.product_id
    FROM unnest(e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id)
         WITH ORDINALITY AS e(type, payload, metadata, cart_id, item_id, product_id, ord)
    ORDER BY e.ord;
    moved := true; stored_offset := to_offset; head := head + cardinality(e_type);
    RETURN NEXT;
END $$;
