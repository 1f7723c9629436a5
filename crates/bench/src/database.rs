//! The bench's own databases, filled with earlier events.

use std::sync::Mutex;

use anyhow::{Context, Result};
use cart_events::{DomainEvent, ProductId};
use disintegrate::serde::json::Json;
use disintegrate_postgres::PgEventStore;
use embedded::database;
use sqlx::{PgPool, postgres::PgConnectOptions};
use url::Url;
use uuid::Uuid;

/// disintegrate's store, in its usual form.
pub(crate) type Rival = PgEventStore<DomainEvent, Json<DomainEvent>>;

/// A PostgreSQL server on which the bench may create databases.
pub(crate) struct Server {
    url: Url,
    made: Mutex<Vec<String>>,
}

/// A database, and its owner's connections.
#[derive(Clone)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

impl Server {
    pub(crate) fn new(url: &str) -> Result<Self> {
        Ok(Self { url: url.parse().context("the database URL")?, made: Mutex::default() })
    }

    /// Connects to the server's own database, for its version and settings.
    pub(crate) async fn pool(&self) -> Result<PgPool> {
        Ok(database::connect(self.url.as_str()).await?)
    }

    /// Creates a database with the log. Its schema `floor` has a table like the log that any role may insert into.
    pub(crate) async fn log(&self) -> Result<Database> {
        let made = self.empty().await?;
        database::migrate(&made.url).await?;
        let floor = "CREATE SCHEMA floor;
            CREATE SEQUENCE floor.position;
            CREATE TABLE floor.event (LIKE public.event INCLUDING ALL);
            ALTER TABLE floor.event ALTER event_id SET DEFAULT nextval('floor.position')";
        sqlx::raw_sql(floor).execute(&made.pool).await?;
        Ok(made)
    }

    /// Creates a database with disintegrate's log.
    pub(crate) async fn rival(&self) -> Result<(Database, Rival)> {
        let made = self.empty().await?;
        // sqlx's defaults, as in disintegrate's examples.
        let pool = PgPool::connect(&made.url).await?;
        Ok((made, Rival::try_new(pool, Json::default()).await?))
    }

    async fn empty(&self) -> Result<Database> {
        let name = format!("bench_{}", Uuid::now_v7().simple());
        database::create(self.url.as_str(), &name).await?;
        let mut url = self.url.clone();
        url.set_path(&name);
        self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(name);
        Ok(Database { pool: database::connect(url.as_str()).await?, url: url.into() })
    }

    /// Drops every database that the bench has created.
    pub(crate) async fn drop_all(&self) -> Result<()> {
        let pool = self.pool().await?;
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for name in made {
            sqlx::raw_sql(&format!("DROP DATABASE {name} WITH (FORCE)")).execute(&pool).await?;
        }
        Ok(())
    }
}

impl Database {
    /// Runs a checkpoint. Then no earlier change is written to disk during the next measurement, and each contender is the first to change
    /// a page after the checkpoint.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        sqlx::query("CHECKPOINT").execute(&self.pool).await?;
        Ok(())
    }

    /// Opens a pool as a service's role.
    pub(crate) fn url_as(&self, role: &str) -> Result<String> {
        database::for_role(&self.url, role).context("the database URL has no place for a user")
    }

    /// Returns the options to connect as a service's role.
    pub(crate) fn options_as(&self, role: &str) -> Result<PgConnectOptions> {
        Ok(self.url_as(role)?.parse()?)
    }
}

/// The products that carts are filled with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Products {
    /// The first products of the shop, this many.
    Many(u64),
    /// This product.
    One(ProductId),
}

impl Products {
    /// Returns one of the products at random.
    pub(crate) fn any(self) -> ProductId {
        match self {
            Self::Many(count) => shop_product(rand::random_range(0..count.max(1))),
            Self::One(product) => product,
        }
    }

    /// Returns the SQL for the product of cart `g`.
    fn sql(self) -> String {
        match self {
            Self::Many(count) => format!("('{SHOP}' || lpad(to_hex(g % {count}), 12, '0'))::uuid"),
            Self::One(product) => format!("'{product}'::uuid"),
        }
    }
}

/// The first digits of the ids of the shop's products.
pub(crate) const SHOP: &str = "01900000-0000-7000-8000-";

fn shop_product(number: u64) -> ProductId {
    let Ok(base) = Uuid::parse_str(&format!("{SHOP}000000000000")) else { return ProductId::new() };
    ProductId::from_log(Uuid::from_u128(base.as_u128() | u128::from(number)))
}

/// Returns the SQL for the id of the cart with a number.
pub(crate) fn numbered_cart(number: &str) -> String {
    format!("('{CARTS}' || lpad(to_hex({number}), 12, '0'))::uuid")
}

/// Returns the id of the cart with a number.
pub(crate) fn cart(number: u64) -> String {
    format!("{CARTS}{number:012x}")
}

/// The first digits of the ids of numbered carts.
const CARTS: &str = "01900000-0000-7000-9000-";

/// A table of events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// disintegrate's table has no such column.
    has_metadata: bool,
    /// The sequence for positions, if the table has one.
    sequence: Option<&'static str>,
}

pub(crate) const LOG: Table = Table { name: "event", has_metadata: true, sequence: None };
pub(crate) const FLOOR: Table = Table { name: "floor.event", has_metadata: true, sequence: Some("floor.position") };
pub(crate) const RIVAL: Table = Table { name: "event", has_metadata: false, sequence: Some("seq_event_event_id") };

impl Table {
    /// Adds carts with one item: two events each, as Add Item writes them.
    pub(crate) async fn add_carts(self, pool: &PgPool, carts: u64, products: Products) -> Result<()> {
        let source = format!("uuidv7() AS cart, uuidv7() AS item, {} AS product", products.sql());
        let events = r#"(1, 'CartCreated', format('{"CartCreated":{"cart_id":"%s"}}', cart), cart, NULL, NULL),
            (2, 'ItemAdded', format('{"ItemAdded":{"cart_id":"%s","item_id":"%s","product_id":"%s","description":"A tea pot",'
                '"image":"tea-pot.png","price":"9.99","device_fingerprint":"%s"}}', cart, item, product, gen_random_uuid()), cart, item, product)"#;
        self.add(pool, carts, &source, events, 2).await
    }

    /// Adds carts with numbers from 0 on. Each has three items, after this many changes: items are added and removed again in between.
    pub(crate) async fn add_numbered_carts(self, pool: &PgPool, carts: u64, from: u64, changes: u8) -> Result<()> {
        let item = |number: u8| format!("('01900000-0000-7000-a000-' || lpad(to_hex((g + {from}) * 256 + {number}), 12, '0'))::uuid");
        let added = |n: u8, number: u8| {
            format!(
                r#"({n}, 'ItemAdded', format('{{"ItemAdded":{{"cart_id":"%s","item_id":"%s","product_id":"%s","description":"A tea pot",'
                '"image":"tea-pot.png","price":"9.99","device_fingerprint":"%s"}}}}', cart, {0}, product, gen_random_uuid()), cart, {0}, product)"#,
                item(number)
            )
        };
        let removed = |n: u8, number: u8| {
            format!(
                r#"({n}, 'ItemRemoved', format('{{"ItemRemoved":{{"cart_id":"%s","item_id":"%s"}}}}', cart, {0}), cart, {0}, NULL)"#,
                item(number)
            )
        };
        let mut events = vec![
            r#"(1, 'CartCreated', format('{"CartCreated":{"cart_id":"%s"}}', cart), cart, NULL, NULL)"#.to_owned(),
            added(2, 2),
            added(3, 3),
        ];
        for n in (4..changes).step_by(2) {
            events.extend([added(n, n), removed(n + 1, n)]);
        }
        events.push(added(changes, changes));
        let source = format!("{} AS cart, {} AS product", numbered_cart(&format!("g + {from}")), Products::Many(1_000).sql());
        self.add(pool, carts, &source, &events.join(", "), changes).await
    }

    /// Adds submitted carts with one item.
    pub(crate) async fn add_submitted_carts(self, pool: &PgPool, carts: u64) -> Result<()> {
        let source = format!("uuidv7() AS cart, uuidv7() AS item, {} AS product", Products::Many(1_000).sql());
        let events = r#"(1, 'CartCreated', format('{"CartCreated":{"cart_id":"%s"}}', cart), cart, NULL, NULL),
            (2, 'ItemAdded', format('{"ItemAdded":{"cart_id":"%s","item_id":"%s","product_id":"%s","description":"A tea pot",'
                '"image":"tea-pot.png","price":"9.99","device_fingerprint":"%s"}}', cart, item, product, gen_random_uuid()), cart, item, product),
            (3, 'CartSubmitted', format('{"CartSubmitted":{"cart_id":"%s","ordered_products":[{"product_id":"%s","price":"9.99"}],'
                '"total_price":"9.99"}}', cart, product), cart, NULL, NULL)"#;
        self.add(pool, carts, &source, events, 3).await
    }

    /// Adds reports of a product's inventory.
    pub(crate) async fn add_inventories(self, pool: &PgPool, reports: u64, product: ProductId) -> Result<()> {
        let source = format!("{} AS product", Products::One(product).sql());
        let events = r#"(1, 'InventoryChanged', format('{"InventoryChanged":{"product_id":"%s","inventory":%s}}', product, g + 1),
            NULL, NULL, product)"#;
        self.add(pool, reports, &source, events, 1).await
    }

    /// Returns the newest position.
    pub(crate) async fn head(self, pool: &PgPool) -> Result<i64> {
        let head = format!("SELECT coalesce(max(event_id), 0) FROM {}", self.name);
        Ok(sqlx::query_scalar(&head).fetch_one(pool).await?)
    }

    /// Removes all events after the first `events`.
    pub(crate) async fn cut(self, pool: &PgPool, before: u64) -> Result<()> {
        let delete = format!("DELETE FROM {} WHERE event_id > $1", self.name);
        sqlx::query(&delete).bind(i64::try_from(before)?).execute(pool).await?;
        self.settle(pool).await
    }

    /// Adds `width` events this many times.
    async fn add(self, pool: &PgPool, count: u64, source: &str, events: &str, width: u8) -> Result<()> {
        const STEP: usize = 100_000;
        let Self { name, has_metadata, .. } = self;
        let (column, value) = if has_metadata { (", metadata", ", jsonb_build_object('append_id', uuidv7())") } else { ("", "") };
        let insert = format!(
            "INSERT INTO {name} (event_id, event_type, payload, cart_id, item_id, product_id{column})
             SELECT head.id + (g - $1) * {width} + n, type, convert_to(payload, 'UTF8'), e.cart_id::uuid, e.item_id::uuid, e.product_id::uuid{value}
             FROM (SELECT coalesce(max(event_id), 0) AS id FROM {name}) head
             CROSS JOIN (SELECT g, {source} FROM generate_series($1::bigint, $2::bigint) g OFFSET 0) source
             CROSS JOIN LATERAL (VALUES {events}) AS e(n, type, payload, cart_id, item_id, product_id)"
        );
        let count = i64::try_from(count)?;
        for from in (0..count).step_by(STEP) {
            let to = count.min(from + STEP as i64);
            sqlx::query(&insert).bind(from).bind(to - 1).execute(pool).await?;
        }
        self.settle(pool).await
    }

    /// Moves the sequence behind the newest position, and runs VACUUM and ANALYZE, as if the table were older.
    async fn settle(self, pool: &PgPool) -> Result<()> {
        let Self { name, sequence, .. } = self;
        if let Some(sequence) = sequence {
            sqlx::raw_sql(&format!("SELECT setval('{sequence}', coalesce(max(event_id), 1)) FROM {name}")).execute(pool).await?;
        }
        sqlx::raw_sql(&format!("VACUUM ANALYZE {name}")).execute(pool).await?;
        Ok(())
    }
}
