-- The tables in which the projection runtime stores the state of read models and automations.

-- The tables of a read model exist in both projection schemas: a rebuild fills one while the other serves. The state of an automation has
-- one build, in its own schema. The runtime sets search_path, so slices name their tables without a schema.
CREATE SCHEMA projection_a;
CREATE SCHEMA projection_b;
CREATE SCHEMA automation;

-- Answers whether tables have plain names, which are a projection's name or start with it and an underscore.
CREATE FUNCTION belong_to(projection text, tables text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (SELECT coalesce(bool_and(coalesce(t ~ '^[a-z0-9_]+$' AND (t = projection OR starts_with(t, projection || '_')), false)), true) FROM unnest(tables) AS t);

-- A build of a projection.
CREATE TABLE projection (
    name               text        NOT NULL,
    -- The schema of its tables.
    build              text        NOT NULL CHECK (build IN ('projection_a', 'projection_b', 'automation')),
    version            integer     NOT NULL,
    status             text        NOT NULL CHECK (status IN ('serving', 'building', 'retired')),
    -- Its tables, without schema. A rebuild empties them, so no projection may name another one's.
    tables             text[]      NOT NULL DEFAULT '{}',
    -- Whether a new build starts to serve as soon as it has caught up, or waits for an operator.
    switch_when_ready  boolean     NOT NULL DEFAULT true,
    -- Whether a new build may serve if it has parked keys that the serving build does not have.
    switch_with_parked boolean     NOT NULL DEFAULT false,
    -- While paused, the replicas keep their segments and apply nothing.
    paused             boolean     NOT NULL DEFAULT false,
    -- While two builds are compared, no segment passes hold_at. The hold ends at hold_until even if nobody releases it.
    hold_at            bigint,
    hold_until         timestamptz,
    -- The head of the log when the build was found to be ahead of it: the log was restored without the build, or the build without the
    -- log. It applies nothing and runs no command until an operator rebuilds it, also if the log has grown past it.
    ahead_of           bigint,
    started_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, build),
    CONSTRAINT projection_tables CHECK (belong_to(name, tables)),
    CONSTRAINT projection_hold CHECK ((hold_at IS NULL) = (hold_until IS NULL))
);
CREATE UNIQUE INDEX projection_serving ON projection (name) WHERE status = 'serving';

-- A living process that runs a projection. Its heartbeat counts up `beats`. Another replica that sees the same count for `lease`, by its own
-- monotonic clock, deletes the row. No clock of the database decides, because it may step.
CREATE TABLE replica (
    name        text        NOT NULL,
    id          uuid        NOT NULL,
    version     integer     NOT NULL,
    beats       bigint      NOT NULL,
    lease       interval    NOT NULL,
    -- For operators, who see a replica once: it counts as alive for `lease` after this.
    beaten_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Events and batches that this replica applied per second lately, by build: {"projection_a": {"events": 1200.5, "batches": 3.2}}
    throughput  jsonb       NOT NULL DEFAULT '{}',
    PRIMARY KEY (name, id)
);

-- How far a segment of a build has applied the log, and which replica owns it while that replica has a row. Each transaction that writes a
-- segment's rows moves its checkpoint too, and fails if the segment has another owner.
CREATE TABLE checkpoint (
    name             text        NOT NULL,
    build            text        NOT NULL,
    segment          integer     NOT NULL CHECK (segment >= 0),
    position         bigint      NOT NULL DEFAULT 0,
    owner            uuid,
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The segment is blocked while its position is before blocked_at: it retries that event, which cannot be applied and has no key to park.
    blocked_at       bigint,
    blocked_error    text,
    blocked_attempts integer,
    blocked_since    timestamptz,
    PRIMARY KEY (name, build, segment),
    FOREIGN KEY (name, build) REFERENCES projection ON DELETE CASCADE
);

-- A key of a build with an event that cannot be applied. That event and all later ones of the key queue in parked_event.
CREATE TABLE parked_key (
    name           text        NOT NULL,
    build          text        NOT NULL,
    key            uuid        NOT NULL,
    -- The event that failed, why, and how often.
    position       bigint      NOT NULL,
    error          text        NOT NULL,
    attempts       integer     NOT NULL DEFAULT 1,
    parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    tried_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Set by an operator. The owner of the key's segment retries, and clears it.
    retry_asked_at timestamptz,
    PRIMARY KEY (name, build, key),
    FOREIGN KEY (name, build) REFERENCES projection ON DELETE CASCADE
);

-- The events that a parked key has still to apply, in the order of the log: its own, and those without a key.
CREATE TABLE parked_event (
    name     text   NOT NULL,
    build    text   NOT NULL,
    key      uuid   NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (name, build, key, position),
    FOREIGN KEY (name, build, key) REFERENCES parked_key ON DELETE CASCADE
);

-- An event that an operator decided never to apply to a build. Rows stay for the record; a rebuild tries the event again.
CREATE TABLE skipped_event (
    id         bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       text        NOT NULL,
    build      text        NOT NULL,
    -- projection.started_at of the build: a rebuild does not inherit what the build before it skipped.
    started_at timestamptz NOT NULL,
    -- NULL: the event has no key and blocked its segments.
    key        uuid,
    position   bigint      NOT NULL,
    error      text        NOT NULL,
    attempts   integer     NOT NULL,
    reason     text        NOT NULL CHECK (reason <> ''),
    skipped_by text        NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX skipped_event_position ON skipped_event (name, build, position);

-- A command that an automation has to run. The runtime deletes done ones after `todo_retention_days`; the checkpoint of the automation
-- keeps it from enqueuing them again.
CREATE TABLE todo (
    automation       text        NOT NULL,
    key              text        NOT NULL,
    -- The position of the event that caused it.
    position         bigint      NOT NULL,
    payload          jsonb       NOT NULL,
    metadata         jsonb       NOT NULL,
    status           text        NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'done', 'failed')),
    attempts         integer     NOT NULL DEFAULT 0,
    -- The length of all attempts and of the pauses after them. Counted by the workers, because the database's clock may step.
    tried_for        interval    NOT NULL DEFAULT '0',
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_attempt_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A worker attempts it. Another worker that sees the same lease for `lease_for`, by its own monotonic clock, takes the to-do over.
    lease            uuid,
    lease_for        interval,
    last_error       text,
    finished_at      timestamptz,
    PRIMARY KEY (automation, key)
);
CREATE INDEX todo_open ON todo (automation, next_attempt_at) WHERE status = 'open';
CREATE INDEX todo_oldest ON todo (automation, position) WHERE status = 'open';
CREATE INDEX todo_leased ON todo (automation, lease) WHERE lease IS NOT NULL;
CREATE INDEX todo_failed ON todo (automation, position) WHERE status = 'failed';
CREATE INDEX todo_done ON todo (automation, finished_at) WHERE status = 'done';

-- Hashes a key: FNV-1a of 32 bits. The segment of a key is the hash of its 16 bytes modulo the number of segments.
-- Never change it: rows would belong to other segments. projections::segment_of computes the same in Rust.
-- Unrolled, because a loop takes several times as long.
DO $$
DECLARE
    hash text := '2166136261';
BEGIN
    FOR at IN 0..15 LOOP
        hash := format('((%s # get_byte(bytes, %s)) * 16777619 & 4294967295)', hash, at);
    END LOOP;
    EXECUTE format('CREATE FUNCTION key_hash(bytes bytea) RETURNS bigint
                    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN %s', hash);
END $$;

-- Answers whether the current transaction of a projection may write the rows of a key. The SQL for an event without a key must ask this for
-- each row it writes, because the segments of other keys may be at other positions.
-- The runtime sets, per transaction:
--   projection.segments: one character per segment, 1 if the transaction is about it; unset means all.
--   projection.parked: the parked keys, separated by commas; their events queue.
--   projection.key: this key only, while the runtime retries a parked key.
CREATE FUNCTION key_in_scope(key uuid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN coalesce(current_setting('projection.key', true), '') <> '' THEN key = current_setting('projection.key')::uuid
    WHEN coalesce(current_setting('projection.parked', true), '') <> ''
         AND strpos(current_setting('projection.parked'), key::text) > 0 THEN false
    WHEN strpos(coalesce(current_setting('projection.segments', true), ''), '0') = 0 THEN true
    ELSE substr(current_setting('projection.segments'),
                (key_hash(uuid_send(key)) % length(current_setting('projection.segments')))::integer + 1, 1) = '1'
END;

-- The tables of a build with their schema, quoted, in the order in which every transaction empties them.
CREATE FUNCTION build_tables(build text, tables text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT string_agg(format('%I.%I', build, t), ', ' ORDER BY t) FROM unnest(tables) AS t $$;

-- Answers whether a comparison holds a build. A hold that ends later than a comparison may take is one from before a step of the clock.
CREATE FUNCTION is_held(until timestamptz) RETURNS boolean
LANGUAGE sql STABLE
RETURN coalesce(until > clock_timestamp() AND until < clock_timestamp() + interval '5 minutes', false);

-- Counts an automation's open, due and failed to-dos, and answers the age of the oldest open one in seconds. Counts stop at `bound`, so that
-- the call stays cheap.
CREATE FUNCTION todo_backlog(of text, bound integer, OUT open bigint, OUT due bigint, OUT failed bigint, OUT oldest float8)
LANGUAGE sql STABLE
RETURN ROW(
    (SELECT count(*) FROM (SELECT FROM todo WHERE automation = of AND status = 'open' LIMIT bound) AS open),
    (SELECT count(*) FROM (SELECT FROM todo WHERE automation = of AND status = 'open' AND next_attempt_at <= statement_timestamp()
                              AND lease IS NULL LIMIT bound) AS due),
    (SELECT count(*) FROM (SELECT FROM todo WHERE automation = of AND status = 'failed' LIMIT bound) AS failed),
    (SELECT extract(epoch FROM statement_timestamp() - created_at)::float8 FROM todo WHERE automation = of AND status = 'open'
     ORDER BY position LIMIT 1)
);
