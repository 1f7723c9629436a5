-- The tables of the slices.

-- Read models: the same tables in both schemas, so that a rebuild can fill one while the other serves.
DO $$
DECLARE
    before text := current_setting('search_path');
    build  text;
BEGIN
    FOREACH build IN ARRAY ARRAY['projection_a', 'projection_b'] LOOP
        PERFORM set_config('search_path', build, true);

        -- Cart Items
        CREATE TABLE cart_items_cart (
            cart_id uuid PRIMARY KEY
        );
        CREATE TABLE cart_items_item (
            cart_id     uuid          NOT NULL,
            item_id     uuid          NOT NULL,
            product_id  uuid          NOT NULL,
            description text          NOT NULL,
            image       text          NOT NULL,
            price       numeric(12,2) NOT NULL,
            fingerprint text          NOT NULL,
            position    bigint        NOT NULL,
            PRIMARY KEY (cart_id, item_id)
        );

        -- Carts with Products
        CREATE TABLE carts_with_products (
            cart_id    uuid   NOT NULL,
            item_id    uuid   NOT NULL,
            product_id uuid   NOT NULL,
            position   bigint NOT NULL,
            PRIMARY KEY (cart_id, item_id)
        );
        CREATE INDEX ON carts_with_products (product_id, position);

        -- Inventories
        CREATE TABLE inventories (
            product_id uuid    PRIMARY KEY,
            inventory  integer NOT NULL,
            position   bigint  NOT NULL
        );

        -- Changed Prices
        CREATE TABLE changed_prices (
            product_id uuid          PRIMARY KEY,
            old_price  numeric(12,2) NOT NULL,
            new_price  numeric(12,2) NOT NULL,
            position   bigint        NOT NULL
        );
    END LOOP;
    PERFORM set_config('search_path', before, true);
END $$;

-- Archive Item: the items in unsubmitted carts, and the positions at which they were added.
CREATE TABLE automation.archive_item_open_item (
    cart_id    uuid   NOT NULL,
    item_id    uuid   NOT NULL,
    product_id uuid   NOT NULL,
    position   bigint NOT NULL,
    PRIMARY KEY (cart_id, item_id)
);
CREATE INDEX archive_item_open_item_product_id ON automation.archive_item_open_item (product_id, position);
