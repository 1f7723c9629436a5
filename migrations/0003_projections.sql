-- What the projection runtime keeps, and the tables of the read models.
--
-- Every read model's tables exist twice, in the schemas projection_a and projection_b, so that a new build can stand beside the one in
-- service. The runtime sets the search path for each transaction; the slices' SQL names tables without a schema.

-- A build of a projection, in one of the schemas. An automation's state stands in the schema automation, is its only build, and is
-- never made anew.
CREATE TABLE projection (
    name              text        NOT NULL,
    build             text        NOT NULL CHECK (build IN ('projection_a', 'projection_b', 'automation')),
    version           integer     NOT NULL,
    status            text        NOT NULL CHECK (status IN ('serving', 'building', 'retired')),
    -- Its tables, without schema.
    tables            text[]      NOT NULL DEFAULT '{}',
    -- Into how many segments the release that was started last wants it cut. Into how many it is cut, checkpoint says.
    segments          integer     NOT NULL CHECK (segments > 0),
    -- Whether a new build goes into service by itself when it has come as far as the one that is, or waits until this is set.
    switch_when_ready boolean     NOT NULL DEFAULT true,
    started_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, build)
);
CREATE UNIQUE INDEX projection_serving ON projection (name) WHERE status = 'serving';

-- A process that runs a projection, and until when it counts as alive, by the database's clock. It says so anew all the time.
CREATE TABLE replica (
    name        text        NOT NULL,
    id          uuid        NOT NULL,
    version     integer     NOT NULL,
    segments    integer     NOT NULL,
    alive_until timestamptz NOT NULL,
    PRIMARY KEY (name, id)
);

-- Up to where a segment of a build has applied the log, and which replica holds it: for as long as that is alive, or until it hands
-- it back. Each write of a segment's rows moves its checkpoint in the same transaction, from where its owner left it.
CREATE TABLE checkpoint (
    name       text        NOT NULL,
    build      text        NOT NULL,
    segment    integer     NOT NULL,
    -- Into how many segments the build is cut: the same in each of its rows.
    segments   integer     NOT NULL,
    position   bigint      NOT NULL DEFAULT 0,
    owner      uuid,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, build, segment),
    FOREIGN KEY (name, build) REFERENCES projection ON DELETE CASCADE,
    CHECK (segment >= 0 AND segment < segments)
);

-- A key's segment is this modulo the number of segments: FNV-1a of 32 bits over the 16 bytes of the UUID. Rust computes the same
-- (event_store::projection::segment_of). Unrolled, because a loop would take several times as long.
DO $$
DECLARE
    hash text := '2166136261';
BEGIN
    FOR at IN 0..15 LOOP
        hash := format('((%s # get_byte(bytes, %s)) * 16777619 & 4294967295)', hash, at);
    END LOOP;
    EXECUTE format('CREATE FUNCTION projection_hash(bytes bytea) RETURNS bigint
                    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN %s', hash);
END $$;

-- Whether a key belongs to the segments that the transaction of a projection is about: the SQL for an event without a key must touch
-- the rows of no others, for they may stand at other positions of the log. The runtime sets projection.segments: a character for each
-- segment, 1 for those in hand. Without it, all are.
CREATE FUNCTION projection_holds(key uuid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN strpos(coalesce(current_setting('projection.segments', true), ''), '0') = 0 THEN true
    ELSE substr(current_setting('projection.segments'),
                (projection_hash(uuid_send(key)) % length(current_setting('projection.segments')))::integer + 1, 1) = '1'
END;

-- What an automation has still to do, and what it did: done ones are kept, so that nothing is done for the same key again.
CREATE TABLE todo (
    automation       text        NOT NULL,
    key              text        NOT NULL,
    -- The position of the event that asked for it.
    position         bigint      NOT NULL,
    payload          jsonb       NOT NULL,
    metadata         jsonb       NOT NULL,
    status           text        NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'done', 'failed')),
    attempts         integer     NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    first_attempt_at timestamptz,
    next_attempt_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease            uuid,
    lease_until      timestamptz,
    last_error       text,
    finished_at      timestamptz,
    PRIMARY KEY (automation, key)
);
CREATE INDEX todo_open ON todo (automation, next_attempt_at) WHERE status = 'open';
CREATE INDEX todo_failed ON todo (automation, position) WHERE status = 'failed';

CREATE SCHEMA automation;
-- Archive Item: the items in unsubmitted carts, and the position at which each was added.
CREATE TABLE automation.archive_item_open_item (
    cart_id    uuid   NOT NULL,
    item_id    uuid   NOT NULL,
    product_id uuid   NOT NULL,
    position   bigint NOT NULL,
    PRIMARY KEY (cart_id, item_id)
);
CREATE INDEX archive_item_open_item_product_id ON automation.archive_item_open_item (product_id, position);

DO $$
DECLARE
    build text;
BEGIN
    FOREACH build IN ARRAY ARRAY['projection_a', 'projection_b'] LOOP
        EXECUTE format('CREATE SCHEMA %I', build);

        -- Cart Items
        EXECUTE format('CREATE TABLE %I.cart_items_cart (cart_id uuid PRIMARY KEY)', build);
        EXECUTE format('CREATE TABLE %I.cart_items_item (
            cart_id     uuid          NOT NULL,
            item_id     uuid          NOT NULL,
            product_id  uuid          NOT NULL,
            description text          NOT NULL,
            image       text          NOT NULL,
            price       numeric(12,2) NOT NULL,
            fingerprint text          NOT NULL,
            position    bigint        NOT NULL,
            PRIMARY KEY (cart_id, item_id))', build);

        -- Carts with Products
        EXECUTE format('CREATE TABLE %I.carts_with_products (
            cart_id    uuid   NOT NULL,
            item_id    uuid   NOT NULL,
            product_id uuid   NOT NULL,
            position   bigint NOT NULL,
            PRIMARY KEY (cart_id, item_id))', build);
        EXECUTE format('CREATE INDEX ON %I.carts_with_products (product_id, position)', build);

        -- Inventories
        EXECUTE format('CREATE TABLE %I.inventories (
            product_id uuid    PRIMARY KEY,
            inventory  integer NOT NULL,
            position   bigint  NOT NULL)', build);

        EXECUTE format('GRANT USAGE ON SCHEMA %I TO cartlog_projections', build);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA %I TO cartlog_projections', build);
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA automation TO cartlog_projections;
GRANT SELECT, INSERT, UPDATE, DELETE ON automation.archive_item_open_item TO cartlog_projections;
GRANT SELECT, INSERT, UPDATE ON projection, checkpoint, replica, todo TO cartlog_projections, cartlog_publisher;
GRANT DELETE ON checkpoint, replica TO cartlog_projections, cartlog_publisher;
GRANT DELETE ON projection TO cartlog_projections;
REVOKE ALL ON FUNCTION projection_hash, projection_holds FROM PUBLIC;
GRANT EXECUTE ON FUNCTION projection_hash, projection_holds TO cartlog_projections, cartlog_publisher;
