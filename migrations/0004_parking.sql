-- Events that a projection cannot apply: parked with their key, while the rest goes on.
--
-- Binaries of the release before know nothing of this. They go on beside it: they get no segment in which a key is parked, and where they
-- hold one, nothing is parked in it.

-- A key whose events are not applied, since one of them could not be: it and what came after it queue in parked_event. A build's own, like
-- its checkpoints.
CREATE TABLE parked (
    name            text        NOT NULL,
    build           text        NOT NULL,
    key             uuid        NOT NULL,
    -- The event that it stands at, why, and how often that was tried.
    position        bigint      NOT NULL,
    error           text        NOT NULL,
    attempts        integer     NOT NULL DEFAULT 1,
    parked_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    tried_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Set by an operator: the replica that holds the key's segment tries again, and clears it.
    retry_asked_at  timestamptz,
    PRIMARY KEY (name, build, key),
    FOREIGN KEY (name, build) REFERENCES projection ON DELETE CASCADE
);

-- What a parked key has still before it, in the order of the log: its own events, and those without a key.
CREATE TABLE parked_event (
    name     text   NOT NULL,
    build    text   NOT NULL,
    key      uuid   NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (name, build, key, position),
    FOREIGN KEY (name, build, key) REFERENCES parked ON DELETE CASCADE
);

-- What an operator has decided that a build shall never apply: an event for a parked key, or one without a key that stopped its segments.
-- Kept, also when the build is made anew: that tries them again.
CREATE TABLE skipped_event (
    id         bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       text        NOT NULL,
    build      text        NOT NULL,
    -- Of the build's row: begun anew, it skips nothing that it was told to skip before.
    started_at timestamptz NOT NULL,
    -- NULL for an event without a key.
    key        uuid,
    position   bigint      NOT NULL,
    error      text        NOT NULL,
    attempts   integer     NOT NULL,
    reason     text        NOT NULL CHECK (reason <> ''),
    skipped_by text        NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX skipped_event_position ON skipped_event (name, build, position);

-- An event that cannot be applied and that no key can be parked for stops the segments that it fails in: they stand before it, and try it
-- again and again. That they do is so for as long as the checkpoint is before it.
ALTER TABLE checkpoint
    ADD COLUMN stopped_at       bigint,
    ADD COLUMN stopped_error    text,
    ADD COLUMN stopped_attempts integer,
    ADD COLUMN stopped_since    timestamptz;

-- Whether a new build may go into service with keys parked that the one in service has not.
ALTER TABLE projection ADD COLUMN switch_with_parked boolean NOT NULL DEFAULT false;

-- Whether the replica's release knows of parked keys.
ALTER TABLE replica ADD COLUMN parks boolean NOT NULL DEFAULT false;

-- A replica that does not would apply a parked key's events before those in its queue. It gets no segment that has one.
CREATE FUNCTION checkpoint_taken() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.owner IS NOT NULL AND NEW.owner IS DISTINCT FROM OLD.owner
        AND NOT EXISTS (SELECT FROM public.replica r WHERE r.name = NEW.name AND r.id = NEW.owner AND r.parks)
        AND EXISTS (
            SELECT FROM public.parked k
            WHERE k.name = NEW.name AND k.build = NEW.build
              AND public.projection_hash(uuid_send(k.key)) % NEW.segments = NEW.segment)
    THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$;
-- Only where an owner is set: a batch moves positions, and pays nothing for this.
CREATE TRIGGER checkpoint_taken BEFORE UPDATE OF owner ON checkpoint FOR EACH ROW EXECUTE FUNCTION checkpoint_taken();

-- As before, and besides: where the runtime sets projection.key, that key alone is held (it is parked and tried again); and what
-- projection.parked names, keys separated by commas, is not.
CREATE OR REPLACE FUNCTION projection_holds(key uuid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN coalesce(current_setting('projection.key', true), '') <> '' THEN key = current_setting('projection.key')::uuid
    WHEN coalesce(current_setting('projection.parked', true), '') <> ''
         AND strpos(current_setting('projection.parked'), key::text) > 0 THEN false
    WHEN strpos(coalesce(current_setting('projection.segments', true), ''), '0') = 0 THEN true
    ELSE substr(current_setting('projection.segments'),
                (projection_hash(uuid_send(key)) % length(current_setting('projection.segments')))::integer + 1, 1) = '1'
END;

-- What the readers of a build share, and who empties its tables has alone.
CREATE FUNCTION projection_lock(name text, build text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN hashtextextended(name || ' ' || build, 0);

-- Begins to read the build in service, within a transaction: its tables are found without a schema, and are not emptied before the end of
-- it, whatever is switched and made anew meanwhile. Answers which build it is, and a key that is parked: this one, or where none is given
-- any. NULL where the projection was never run, or nothing is parked.
--
-- VOLATILE, so that after the lock it sees what was committed before the lock was got.
CREATE FUNCTION projection_read(projection text, of_key uuid, OUT serving text, OUT parked_key uuid)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    locked record;
BEGIN
    LOOP
        SELECT p.build, pg_advisory_xact_lock_shared(public.projection_lock(p.name, p.build)) INTO locked
        FROM public.projection p WHERE p.name = projection AND p.status = 'serving';
        SELECT p.build,
               (SELECT k.key FROM public.parked k
                WHERE k.name = p.name AND k.build = p.build AND (of_key IS NULL OR k.key = of_key) ORDER BY k.parked_at LIMIT 1)
        INTO serving, parked_key
        FROM public.projection p WHERE p.name = projection AND p.status = 'serving';
        EXIT WHEN serving IS NOT DISTINCT FROM locked.build;
    END LOOP;
    PERFORM set_config('search_path', serving || ', public', true);
END $$;

GRANT SELECT, INSERT, UPDATE, DELETE ON parked, parked_event TO cartlog_projections, cartlog_publisher;
GRANT SELECT ON skipped_event TO cartlog_projections, cartlog_publisher;
REVOKE ALL ON FUNCTION checkpoint_taken, projection_lock, projection_read FROM PUBLIC;
GRANT EXECUTE ON FUNCTION projection_lock, projection_read TO cartlog_projections, cartlog_publisher;
