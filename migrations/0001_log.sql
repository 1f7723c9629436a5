-- The log: one table, one order, one writer.

-- Nobody may call a function until a migration grants it. PostgreSQL's default would let everybody.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- The columns of disintegrate-postgres 4 (event_id, event_type, payload, inserted_at, one uuid column per domain id), so that it can read
-- this log, and metadata.
CREATE TABLE event (
    -- The position. append_events assigns the last position plus 1 under the append lock: commit order, without gaps.
    event_id    bigint      PRIMARY KEY,
    event_type  text        NOT NULL,
    -- The event as JSON with its type outside: {"CartCreated": {…}}
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
-- The type comes before the position: a popular product has a million ItemAdded, and a query for its InventoryChanged must skip them.
CREATE INDEX event_product_id ON event (product_id, event_type, event_id) WHERE product_id IS NOT NULL;

-- A published cart's message has the id of the append that wrote CartSubmitted. A role that uses an id again would let consumers take two
-- carts for one.
CREATE UNIQUE INDEX event_submission ON event ((metadata->>'append_id')) WHERE event_type = 'CartSubmitted';

-- No plan depends on the statistics of this table, so ANALYZE reads 3,000 rows instead of 30,000. A large sample slows appends meanwhile.
ALTER TABLE event
    ALTER event_id    SET STATISTICS 10,
    ALTER event_type  SET STATISTICS 10,
    ALTER payload     SET STATISTICS 0,
    ALTER inserted_at SET STATISTICS 0,
    ALTER cart_id     SET STATISTICS 10,
    ALTER item_id     SET STATISTICS 10,
    ALTER product_id  SET STATISTICS 10,
    ALTER metadata    SET STATISTICS 0;

-- Which log this is: one row with an id that differs in every migrated database.
CREATE TABLE event_log (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO event_log DEFAULT VALUES;

-- The offset of the next message that each consumer reads from a partition of a topic.
CREATE TABLE source_offset (
    consumer    text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    next_offset bigint      NOT NULL,
    -- The last message before next_offset that was read: {"offset", "timestamp", "sha256"}. If the topic has another message there, it was
    -- created again. NULL: unknown, because an operator set the offset or nothing was read yet.
    last_message jsonb,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, topic, partition)
);

-- Answers the identity of the log: cluster, timeline, database, the id above, when the server started, and when it last recovered from a
-- crash. A failover or a restore to a point in time starts a new timeline, and a data directory is put back while the server is stopped. If a
-- backend crashes, the server recovers without a new start and may lose what was committed without a flush; it then resets its statistics. A
-- process that sees another identity drops every state and position it has in memory.
CREATE FUNCTION log_identity() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
BEGIN ATOMIC
    -- No SET search_path, which costs more than the rest: the names of such a body are bound when the function is created.
    SELECT concat_ws(':',
        (SELECT system_identifier FROM pg_control_system()),
        CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
        (SELECT oid FROM pg_database WHERE datname = current_database()),
        (SELECT id FROM public.event_log),
        concat(extract(epoch FROM pg_postmaster_start_time()), '/', extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())));
END;

-- disintegrate-postgres asks this function how far it may read. Position order is commit order here, so the answer is the newest position.
-- STABLE: the function sees the snapshot of the statement that calls it.
CREATE FUNCTION event_store_current_epoch() RETURNS bigint
LANGUAGE sql STABLE AS $$ SELECT coalesce(max(event_id), 0) FROM event $$;

-- Takes the append lock until the end of the transaction. Appends hold it until their commit has ended, so a statement that sees
-- position p sees every event up to p.
--
-- It is a lock on a table that no service may lock, because everybody may take an advisory lock. This mode conflicts with itself only, and
-- with VACUUM of that table of one row.
CREATE FUNCTION lock_log() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE public.event_log IN SHARE UPDATE EXCLUSIVE MODE;
END $$;

-- Lookups: the events after a position that have one of these types and carry each given id. read_by_* answers the first 128, newest_by_*
-- the newest. A lookup is named by its leading id: the first in the order of the columns that is given.
--
-- PostgreSQL puts such a function's query into the statement that calls it, so a reader's statement has the lookups that it needs and no
-- others, and is planned once per connection.
--
-- Each is one ORDER BY … LIMIT over the index of its leading id, with row comparisons: (id, event_id) > (id, after) and <= (id, maximum).
-- Only that index can serve this, so the plan does not depend on statistics. Three other forms do depend on them: a join;
-- `id = … AND event_id > …`, which may walk the primary key; and `id = …` beside the row comparison, which reads the id from its first event.

CREATE FUNCTION read_by_cart_id(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM event e
    WHERE e.cart_id IS NOT NULL AND (e.cart_id, e.event_id) > (q_cart_id, q_after) AND (e.cart_id, e.event_id) <= (q_cart_id, 9223372036854775807)
      AND (q_item_id IS NULL OR e.item_id = q_item_id)
      AND (q_product_id IS NULL OR e.product_id = q_product_id)
      AND e.event_type = ANY (q_types)
    ORDER BY e.cart_id, e.event_id LIMIT 128;
END;

CREATE FUNCTION newest_by_cart_id(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM event e
    WHERE e.cart_id IS NOT NULL AND (e.cart_id, e.event_id) > (q_cart_id, q_after) AND (e.cart_id, e.event_id) <= (q_cart_id, 9223372036854775807)
      AND (q_item_id IS NULL OR e.item_id = q_item_id)
      AND (q_product_id IS NULL OR e.product_id = q_product_id)
      AND e.event_type = ANY (q_types)
    ORDER BY e.cart_id DESC, e.event_id DESC LIMIT 1;
END;

CREATE FUNCTION read_by_item_id(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM event e
    WHERE e.item_id IS NOT NULL AND (e.item_id, e.event_id) > (q_item_id, q_after) AND (e.item_id, e.event_id) <= (q_item_id, 9223372036854775807)
      AND (q_product_id IS NULL OR e.product_id = q_product_id)
      AND e.event_type = ANY (q_types)
    ORDER BY e.item_id, e.event_id LIMIT 128;
END;

CREATE FUNCTION newest_by_item_id(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM event e
    WHERE e.item_id IS NOT NULL AND (e.item_id, e.event_id) > (q_item_id, q_after) AND (e.item_id, e.event_id) <= (q_item_id, 9223372036854775807)
      AND (q_product_id IS NULL OR e.product_id = q_product_id)
      AND e.event_type = ANY (q_types)
    ORDER BY e.item_id DESC, e.event_id DESC LIMIT 1;
END;

-- A product: one probe per type.
CREATE FUNCTION read_by_product_id(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM unnest(q_types) AS t(type) CROSS JOIN LATERAL (
        SELECT e.event_id, e.event_type, e.payload FROM event e
        WHERE e.product_id IS NOT NULL
          AND (e.product_id, e.event_type, e.event_id) > (q_product_id, t.type, q_after)
          AND (e.product_id, e.event_type, e.event_id) <= (q_product_id, t.type, 9223372036854775807)
        ORDER BY e.product_id, e.event_type, e.event_id LIMIT 128
    ) e
    ORDER BY e.event_id LIMIT 128;
END;

CREATE FUNCTION newest_by_product_id(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM unnest(q_types) AS t(type) CROSS JOIN LATERAL (
        SELECT e.event_id, e.event_type, e.payload FROM event e
        WHERE e.product_id IS NOT NULL
          AND (e.product_id, e.event_type, e.event_id) > (q_product_id, t.type, q_after)
          AND (e.product_id, e.event_type, e.event_id) <= (q_product_id, t.type, 9223372036854775807)
        ORDER BY e.product_id DESC, e.event_type DESC, e.event_id DESC LIMIT 1
    ) e
    ORDER BY e.event_id DESC LIMIT 1;
END;

-- No id: every event of the types. Reads the log from q_after on, so the caller should be near the head.
CREATE FUNCTION read_by_type(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM event e
    WHERE e.event_id > q_after AND e.event_type = ANY (q_types)
    ORDER BY e.event_id LIMIT 128;
END;

-- Reads the log backwards from the head until it meets such an event.
CREATE FUNCTION newest_by_type(q_types text[], q_after bigint, q_cart_id uuid, q_item_id uuid, q_product_id uuid)
RETURNS TABLE (event_id bigint, event_type text, payload bytea) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.event_id, e.event_type, e.payload FROM event e
    WHERE e.event_id > q_after AND e.event_type = ANY (q_types)
    ORDER BY e.event_id DESC LIMIT 1;
END;

-- Answers what many lookups of any kind find: the events that an append missed. Each array has one element per query item; q_types holds
-- the item's types, separated by commas.
CREATE FUNCTION read_events(
    q_types text[], q_after bigint[], q_newest boolean[], q_cart_id uuid[], q_item_id uuid[], q_product_id uuid[]
) RETURNS TABLE (query_item integer, event_id bigint, event_type text, payload bytea)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH q AS MATERIALIZED (
        SELECT (ord - 1)::integer AS query_item, string_to_array(types, ',') AS types, after, newest, cart_id, item_id, product_id
        FROM unnest(q_types, q_after, q_newest, q_cart_id, q_item_id, q_product_id)
             WITH ORDINALITY AS q(types, after, newest, cart_id, item_id, product_id, ord)
    )
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL read_by_cart_id(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NOT NULL AND NOT q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL newest_by_cart_id(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NOT NULL AND q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL read_by_item_id(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NULL AND q.item_id IS NOT NULL AND NOT q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL newest_by_item_id(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NULL AND q.item_id IS NOT NULL AND q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL read_by_product_id(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NULL AND q.item_id IS NULL AND q.product_id IS NOT NULL AND NOT q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL newest_by_product_id(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NULL AND q.item_id IS NULL AND q.product_id IS NOT NULL AND q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL read_by_type(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NULL AND q.item_id IS NULL AND q.product_id IS NULL AND NOT q.newest
  UNION ALL
    SELECT q.query_item, e.* FROM q CROSS JOIN LATERAL newest_by_type(q.types, q.after, q.cart_id, q.item_id, q.product_id) e
    WHERE q.cart_id IS NULL AND q.item_id IS NULL AND q.product_id IS NULL AND q.newest
    ORDER BY query_item, event_id;
END;

-- Refuses events that the caller may not append, or whose ids are not those of their payloads, and more of them than an append of a service
-- has. Runs before the append lock is taken.
--
-- A payload must be {"Type":{"cart_id":"…","item_id":"…","product_id":"…", …}}, with the ids of its row first. That is how the services write
-- it. IS JSON finds a key that comes twice, also if it is escaped, and costs a quarter of parsing. A loop costs less than a statement, which
-- has to start.
CREATE FUNCTION check_events(
    e_type text[], e_payload bytea[], e_metadata text[], e_cart_id uuid[], e_item_id uuid[], e_product_id uuid[]
) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
DECLARE
    shape text := array_dims(e_type);
    size  integer;
    name  integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'an append must run under READ COMMITTED: it would check its conditions against an old snapshot'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- Otherwise something else would be checked than is written: a subscript finds an element by its number, and unnest by its order.
    IF shape <> format('[1:%s]', cardinality(e_type)) OR array_dims(e_payload) IS DISTINCT FROM shape
       OR array_dims(e_metadata) IS DISTINCT FROM shape OR array_dims(e_cart_id) IS DISTINCT FROM shape
       OR array_dims(e_item_id) IS DISTINCT FROM shape OR array_dims(e_product_id) IS DISTINCT FROM shape THEN
        RAISE EXCEPTION 'the arrays of an append must have one dimension, begin at 1 and have the same length'
            USING ERRCODE = 'array_subscript_error';
    END IF;
    -- One call must not hold the lock for long. A process sends up to 256 appends, or 1,000 messages.
    IF cardinality(e_type) > 10000 OR pg_column_size(e_payload) > 67108864 THEN
        RAISE EXCEPTION 'a call appends at most 10,000 events of 64 MiB together' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    -- NULL: the role may append every type.
    IF NOT e_type <@ public.event_types(session_user) THEN
        RAISE EXCEPTION '% may not append one of the events %', session_user, e_type USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR n IN 1 .. cardinality(e_type) LOOP
        size := octet_length(e_payload[n]);
        name := octet_length(e_type[n]);
        IF (size <= 65536
            -- An id that is missing from the row would hide the event from every condition. NULL: a type of another log, as in tests.
            AND coalesce(public.event_ids(e_type[n]) = ARRAY[e_cart_id[n] IS NOT NULL, e_item_id[n] IS NOT NULL, e_product_id[n] IS NOT NULL], true)
            AND starts_with(convert_from(e_payload[n], 'UTF8'), '{"' || e_type[n] || '":{' || CASE
                WHEN e_item_id[n] IS NULL AND e_product_id[n] IS NULL THEN coalesce('"cart_id":"' || e_cart_id[n] || '"', '')
                ELSE concat_ws(',', '"cart_id":"' || e_cart_id[n] || '"', '"item_id":"' || e_item_id[n] || '"',
                               '"product_id":"' || e_product_id[n] || '"')
                END)
            -- All between the type's colon and the last brace is one object, so the payload has no second type.
            AND substring(e_payload[n] FROM name + 5 FOR size - name - 5) IS JSON OBJECT WITH UNIQUE KEYS
            AND get_byte(e_payload[n], size - 1) = ascii('}')
            AND octet_length(e_metadata[n]) <= 8192
            AND e_metadata[n] LIKE '{"append_id":"________-____-____-____-____________"%' AND substr(e_metadata[n], 15, 36)::uuid IS NOT NULL
            AND e_metadata[n] IS JSON OBJECT WITH UNIQUE KEYS) IS NOT TRUE THEN
            RAISE EXCEPTION 'the event % cannot be appended: its payload must be JSON of its type and its ids in at most 64 KiB, and its '
                            'metadata JSON with the append_id in at most 8 KiB', e_type[n]
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    RETURN true;
END $$;

-- Refuses a condition without an id for a role that may not append every type: it reads the log from its position on, under the append lock.
-- VOLATILE: it is called only for such a condition, and not by the planner.
CREATE FUNCTION check_scan() RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF public.event_types(session_user) IS NOT NULL THEN
        RAISE EXCEPTION 'a condition of % must have an id: otherwise all appends wait while it reads the log', session_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN true;
END $$;

-- Runs many appends in one call. Each append has its own condition (its query items) and its own outcome.
-- q_append and e_append say to which append a query item and an event belong. The first row of the answer has query_item NULL and, in
-- event_id, the head before the call. The other rows are the missed events. An append without a missed event is written, in the order of
-- the arrays, at head + 1, head + 2, …. An append with a missed event is a conflict and is not written.
--
-- VOLATILE: under READ COMMITTED each statement after the lock sees everything that was committed before the lock was granted.
--
-- SECURITY DEFINER: this is the services' only way to write the log. The caller's search path finds neither functions nor operators in it.
CREATE FUNCTION append_events(
    q_append integer[], q_types text[], q_after bigint[], q_newest boolean[], q_cart_id uuid[], q_item_id uuid[], q_product_id uuid[],
    e_append integer[], e_type text[], e_payload bytea[], e_metadata text[], e_cart_id uuid[], e_item_id uuid[], e_product_id uuid[]
) RETURNS TABLE (query_item integer, event_id bigint, event_type text, payload bytea, more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    head      bigint;
    written   integer;
    conflict  integer;
    conflicts integer[] := '{}';
    bytes     bigint := 0;
    cut       integer;
    checked   boolean;
BEGIN
    checked := public.check_events(e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id);
    -- A query item without a type or a position would be no condition.
    IF array_dims(e_append) IS DISTINCT FROM array_dims(e_type) OR array_position(e_append, NULL) IS NOT NULL
       OR (cardinality(q_append) = cardinality(q_types) AND cardinality(q_after) = cardinality(q_types)
           AND cardinality(q_newest) = cardinality(q_types) AND cardinality(q_cart_id) = cardinality(q_types)
           AND cardinality(q_item_id) = cardinality(q_types) AND cardinality(q_product_id) = cardinality(q_types)
           AND coalesce(array_upper(q_append, 1), 0) = cardinality(q_append) AND array_position(q_append, NULL) IS NULL
           AND array_position(q_types, NULL) IS NULL AND array_position(q_after, NULL) IS NULL
           AND array_position(q_newest, NULL) IS NULL) IS NOT TRUE THEN
        RAISE EXCEPTION 'each event and each query item of an append must be whole' USING ERRCODE = 'array_subscript_error';
    END IF;
    -- They are looked up under the lock.
    IF cardinality(q_types) > 10000 OR pg_column_size(q_types) > 4194304 THEN
        RAISE EXCEPTION 'a call has at most 10,000 query items, whose types take at most 4 MiB together' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    -- The lock of lock_log().
    LOCK TABLE public.event_log IN SHARE UPDATE EXCLUSIVE MODE;
    head := coalesce((SELECT e.event_id FROM public.event e ORDER BY e.event_id DESC LIMIT 1), 0);
    query_item := NULL; event_id := head; event_type := NULL; payload := NULL; more := false;
    RETURN NEXT;

    -- The common case: no append has a conflict, and one statement writes all of them. Each query item probes the index of its leading id
    -- with a row comparison and an order, as in read_events. A plain EXISTS would lose the order, and then the planner may take another
    -- index if statistics are missing or old. unnest is in the SELECT list, because in FROM it would store and join its rows first.
    INSERT INTO public.event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
    SELECT head + e.ord, e.type, e.payload, e.metadata::jsonb, e.cart_id, e.item_id, e.product_id
    FROM (SELECT generate_subscripts(e_type, 1) AS ord, unnest(e_type) AS type, unnest(e_payload) AS payload, unnest(e_metadata) AS metadata,
                 unnest(e_cart_id) AS cart_id, unnest(e_item_id) AS item_id, unnest(e_product_id) AS product_id) e
    WHERE NOT EXISTS (
        SELECT FROM (SELECT unnest(q_types) AS types, unnest(q_after) AS after,
                            unnest(q_cart_id) AS cart_id, unnest(q_item_id) AS item_id, unnest(q_product_id) AS product_id) q
        WHERE q.after > head OR CASE
            WHEN q.cart_id IS NOT NULL THEN (
                SELECT true FROM public.event e
                WHERE e.cart_id IS NOT NULL AND (e.cart_id, e.event_id) > (q.cart_id, q.after) AND (e.cart_id, e.event_id) <= (q.cart_id, 9223372036854775807)
                  AND (q.item_id IS NULL OR e.item_id = q.item_id)
                  AND (q.product_id IS NULL OR e.product_id = q.product_id)
                  AND e.event_type = ANY (string_to_array(q.types, ','))
                ORDER BY e.cart_id, e.event_id LIMIT 1)
            WHEN q.item_id IS NOT NULL THEN (
                SELECT true FROM public.event e
                WHERE e.item_id IS NOT NULL AND (e.item_id, e.event_id) > (q.item_id, q.after) AND (e.item_id, e.event_id) <= (q.item_id, 9223372036854775807)
                  AND (q.product_id IS NULL OR e.product_id = q.product_id)
                  AND e.event_type = ANY (string_to_array(q.types, ','))
                ORDER BY e.item_id, e.event_id LIMIT 1)
            -- One type, the usual case, needs no list of types.
            WHEN q.product_id IS NOT NULL AND strpos(q.types, ',') = 0 THEN (
                SELECT true FROM public.event e
                WHERE e.product_id IS NOT NULL
                  AND (e.product_id, e.event_type, e.event_id) > (q.product_id, q.types, q.after)
                  AND (e.product_id, e.event_type, e.event_id) <= (q.product_id, q.types, 9223372036854775807)
                ORDER BY e.product_id, e.event_type, e.event_id LIMIT 1)
            WHEN q.product_id IS NOT NULL THEN EXISTS (
                SELECT FROM unnest(string_to_array(q.types, ',')) AS t(type) WHERE (
                    SELECT true FROM public.event e
                    WHERE e.product_id IS NOT NULL
                      AND (e.product_id, e.event_type, e.event_id) > (q.product_id, t.type, q.after)
                      AND (e.product_id, e.event_type, e.event_id) <= (q.product_id, t.type, 9223372036854775807)
                    ORDER BY e.product_id, e.event_type, e.event_id LIMIT 1))
            ELSE public.check_scan() AND (
                SELECT true FROM public.event e
                WHERE e.event_id > q.after AND e.event_type = ANY (string_to_array(q.types, ','))
                ORDER BY e.event_id LIMIT 1)
        END);
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written > 0 AND written = cardinality(e_append) THEN
        RETURN;
    END IF;

    -- At least one append has a conflict: answer the missed events, and write the other appends.
    IF EXISTS (SELECT FROM unnest(q_after) AS a(after) WHERE a.after > head) THEN
        RAISE EXCEPTION 'a condition is ahead of the log, whose head is %: the log was reset or restored', head
            USING ERRCODE = 'CL001';
    END IF;
    -- The statement above stops at the first conflict.
    PERFORM public.check_scan() FROM unnest(q_cart_id, q_item_id, q_product_id) AS q (cart_id, item_id, product_id)
        WHERE num_nonnulls(q.cart_id, q.item_id, q.product_id) = 0 LIMIT 1;
    FOR query_item, event_id, event_type, payload, more IN
        SELECT m.query_item, m.event_id, m.event_type, m.payload, false
        FROM public.read_events(q_types, q_after, q_newest, q_cart_id, q_item_id, q_product_id) m
    LOOP
        -- The answer is bounded, because it is made under the lock: past 4 MiB each query item gets its first event, and `more`.
        CONTINUE WHEN query_item = cut;
        bytes := bytes + octet_length(payload);
        IF bytes > 4194304 THEN
            more := true;
            cut := query_item;
        END IF;
        IF q_append[query_item + 1] IS DISTINCT FROM conflict THEN
            conflict := q_append[query_item + 1];
            conflicts := conflicts || conflict;
        END IF;
        RETURN NEXT;
    END LOOP;
    INSERT INTO public.event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
    SELECT head + row_number() OVER (ORDER BY e.ord),
           e.type, e.payload, e.metadata::jsonb, e.cart_id, e.item_id, e.product_id
    FROM unnest(e_append, e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id)
         WITH ORDINALITY AS e(append, type, payload, metadata, cart_id, item_id, product_id, ord)
    WHERE e.append <> ALL (conflicts)
    ORDER BY e.ord;
END $$;

-- Appends the events of a batch of messages, and moves the stored offset of their partition, in one step: each message once.
-- The offset moves only from from_offset (NULL: this consumer never read the partition). If it is another one, nothing is written, and
-- the answer says which offset is stored. Otherwise the answer has the position of the newest event.
-- last is the batch's last message, as in source_offset.last_message; NULL: the batch has no message.
CREATE FUNCTION append_events_from_source(
    for_consumer text, from_topic text, from_partition integer, from_offset bigint, to_offset bigint, last jsonb,
    e_type text[], e_payload bytea[], e_metadata text[], e_cart_id uuid[], e_item_id uuid[], e_product_id uuid[]
) RETURNS TABLE (moved boolean, stored_offset bigint, head bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    checked boolean;
BEGIN
    checked := public.check_events(e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id);
    IF (to_offset >= coalesce(from_offset, 0) AND coalesce(pg_column_size(last), 0) <= 8192) IS NOT TRUE THEN
        RAISE EXCEPTION 'a stored offset moves forwards only, and its last message takes at most 8 KiB' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOCK TABLE public.event_log IN SHARE UPDATE EXCLUSIVE MODE;
    head := coalesce((SELECT e.event_id FROM public.event e ORDER BY e.event_id DESC LIMIT 1), 0);
    stored_offset := (SELECT o.next_offset FROM public.source_offset o
                      WHERE o.consumer = for_consumer AND o.topic = from_topic AND o.partition = from_partition);
    IF stored_offset IS DISTINCT FROM from_offset THEN
        moved := false;
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO public.source_offset AS o (consumer, topic, partition, next_offset, last_message)
    VALUES (for_consumer, from_topic, from_partition, to_offset, last)
    ON CONFLICT ON CONSTRAINT source_offset_pkey DO UPDATE
    SET next_offset = excluded.next_offset, last_message = coalesce(excluded.last_message, o.last_message), updated_at = clock_timestamp();
    INSERT INTO public.event (event_id, event_type, payload, metadata, cart_id, item_id, product_id)
    SELECT head + e.ord, e.type, e.payload, e.metadata::jsonb, e.cart_id, e.item_id, e.product_id
    FROM unnest(e_type, e_payload, e_metadata, e_cart_id, e_item_id, e_product_id)
         WITH ORDINALITY AS e(type, payload, metadata, cart_id, item_id, product_id, ord)
    ORDER BY e.ord;
    moved := true; stored_offset := to_offset; head := head + cardinality(e_type);
    RETURN NEXT;
END $$;
