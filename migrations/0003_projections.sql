-- What the projection runtime keeps, and the tables of the read models.
--
-- Every read model's tables exist twice, in the schemas projection_a and projection_b, so that a new build can stand beside the one in
-- service. The runtime sets the search path for each transaction; the slices' SQL names tables without a schema.

-- A build of a projection, in one of the schemas. An automation's state stands in the schema automation, is its only build, and is
-- never made anew.
CREATE TABLE projection (
    name       text        NOT NULL,
    build      text        NOT NULL CHECK (build IN ('projection_a', 'projection_b', 'automation')),
    version    integer     NOT NULL,
    status     text        NOT NULL CHECK (status IN ('serving', 'building', 'retired')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, build)
);
CREATE UNIQUE INDEX projection_serving ON projection (name) WHERE status = 'serving';

-- Up to where a segment of a build has applied the log, and who holds it, by the database's clock.
CREATE TABLE checkpoint (
    name        text        NOT NULL,
    build       text        NOT NULL,
    segment     integer     NOT NULL DEFAULT 0,
    segments    integer     NOT NULL DEFAULT 1,
    position    bigint      NOT NULL DEFAULT 0,
    owner       uuid,
    lease_until timestamptz,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, build, segment),
    FOREIGN KEY (name, build) REFERENCES projection ON DELETE CASCADE
);

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
GRANT SELECT, INSERT, UPDATE ON projection, checkpoint, todo TO cartlog_projections, cartlog_publisher;
GRANT DELETE ON projection, checkpoint TO cartlog_projections;
