//! Plain SQL: the least that PostgreSQL must do for a whole shopper, or for a read of a cart.
//!
//! The statements are prepared, each commits alone, and they know a cart by a number. pgbench runs them. Without pgbench, this load
//! generator does, which costs more of the machine.

use std::sync::Arc;

use anyhow::Result;

use crate::{
    database::{Database, SHOP, numbered_cart},
    floor::{Connections, PgbenchScript, pgbench_is_installed},
    measure::{Load, Sample},
    place::warmed_up,
    sizes::Sizes,
};

/// Statements that one task runs one after the other. `:n` stands for the number of the cart.
pub(crate) struct Plain {
    statements: Vec<String>,
    /// The numbers of the carts are below this.
    carts: u64,
}

impl Plain {
    /// A whole shopper: three inserts, a select, and two more inserts.
    pub(crate) fn shopper() -> Self {
        let cart = numbered_cart(":n::bigint");
        let insert = |rows: &str| {
            format!("INSERT INTO floor.event (event_type, payload, metadata, cart_id, item_id, product_id) VALUES {rows}")
                .replace('\n', " ")
        };
        // The log has one CartSubmitted of an append.
        let metadata = "jsonb_build_object('append_id', uuidv7())";
        let cart_only = |event: &str, payload: &str| format!("('{event}', '{payload}', {metadata}, {cart}, NULL, NULL)");
        let created = cart_only("CartCreated", r#"{"CartCreated":{"cart_id":"01900000-0000-7000-9000-000000000000"}}"#);
        let added = format!(
            r#"('ItemAdded', '{{"ItemAdded":{{"cart_id":"01900000-0000-7000-9000-000000000000","item_id":"01900000-0000-7000-a000-000000000000",
            "product_id":"01900000-0000-7000-8000-000000000000","description":"A tea pot","image":"tea-pot.png","price":"9.99",
            "device_fingerprint":"0b4b6a4e-0b0e-4b0e-8b0e-0b4b6a4e0b0e"}}}}', {metadata}, {cart}, uuidv7(),
            ('{SHOP}' || lpad(to_hex(:n::bigint % 1000), 12, '0'))::uuid)"#
        );
        let submitted = cart_only(
            "CartSubmitted",
            r#"{"CartSubmitted":{"cart_id":"01900000-0000-7000-9000-000000000000","ordered_products":[
            {"product_id":"01900000-0000-7000-8000-000000000000","price":"9.99"},{"product_id":"01900000-0000-7000-8000-000000000000","price":"9.99"},
            {"product_id":"01900000-0000-7000-8000-000000000000","price":"9.99"}],"total_price":"29.97"}}"#,
        );
        let published = cart_only("CartPublished", r#"{"CartPublished":{"cart_id":"01900000-0000-7000-9000-000000000000"}}"#);
        let first = format!("{created}, {added}");
        let statements =
            vec![insert(&first), insert(&added), insert(&added), select("floor.event"), insert(&submitted), insert(&published)];
        Self { statements, carts: 1 << 40 }
    }

    /// A read of one of the first carts of the log.
    pub(crate) fn read(carts: u64) -> Self {
        Self { statements: vec![select("event")], carts }
    }

    /// Measures how often all statements run in a second.
    pub(crate) async fn measure(&self, database: &Database, tasks: usize, sizes: &Sizes) -> Result<Sample> {
        if pgbench_is_installed().await {
            let text = self.statements.iter().fold(format!("\\set n random(0, {})\n", self.carts - 1), |all, one| all + one + ";\n");
            let script = PgbenchScript::write(&text).await?;
            let rate = script.run(database, tasks, sizes.length).await?;
            return Ok(Sample { per_second: rate, ..Sample::default() });
        }
        let connections = Connections::open(database, tasks).await?;
        let (of_operation, carts) = (connections.clone(), self.carts);
        let statements: Arc<[String]> = self.statements.iter().map(|one| one.replace(":n", "$1")).collect();
        let sample = warmed_up(Load::Tasks(tasks), sizes.length, move |task| {
            let (connections, statements) = (of_operation.clone(), statements.clone());
            async move {
                let mut connection = connections.of(task).await;
                let number = rand::random_range(0..carts).cast_signed();
                for statement in statements.iter() {
                    let rows = sqlx::query(statement).bind(number).fetch_all(&mut *connection).await;
                    rows.map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        })
        .await;
        connections.close().await;
        Ok(sample)
    }
}

/// A read of a cart's rows.
fn select(table: &str) -> String {
    format!("SELECT event_id, event_type, payload FROM {table} WHERE cart_id = {} ORDER BY event_id", numbered_cart(":n::bigint"))
}
