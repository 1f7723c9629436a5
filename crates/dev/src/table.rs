//! The table that `cargo dev up` prints: addresses, logs, and commands to try.

use std::fmt::Write as _;

use uuid::Uuid;

use crate::state::Up;
use embedded::database;
use shop::services::{COMMANDS, PROJECTIONS};

/// Returns the table of addresses and logs, three commands to try with fresh ids, and how to call cartctl.
#[must_use]
pub fn of(up: &Up) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for service in &up.services {
        rows.push([service.name.clone(), service.url.clone(), service.log.display().to_string()]);
    }
    let log = |log: &Option<std::path::PathBuf>| match log {
        Some(path) => path.display().to_string(),
        None => "(not ours)".to_owned(),
    };
    rows.push(["PostgreSQL".to_owned(), database::masked(&up.database.address), log(&up.database.log)]);
    rows.push(["Kafka".to_owned(), up.kafka.address.clone(), log(&up.kafka.log)]);

    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    let mut text = String::from("\n");
    for [name, address, log] in &rows {
        let _ = writeln!(text, "  {name:first$}  {address:second$}  {log}");
    }
    text.push_str(&first_cart(up));
    text.push_str(&operating(up));
    text
}

fn operating(up: &Up) -> String {
    let (cartctl, url, servers) = (up.cartctl.display(), database::masked(&up.database.address), &up.kafka.address);
    format!("\nThe system at a glance:\n\n  {cartctl} --database-url {url} --bootstrap-servers {servers} status\n")
}

fn first_cart(up: &Up) -> String {
    let url = |name: &str| up.services.iter().find(|service| service.name == name).map_or("", |service| service.url.as_str());
    let (commands, projections) = (url(COMMANDS.name), url(PROJECTIONS.name));
    let [cart, item, product] = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    let json = "-H 'Content-Type: application/json'";
    format!(
        r#"
A first cart:

  curl {commands}/additem/{cart} {json} -d '{{"cart_id":"{cart}","item_id":"{item}","product_id":"{product}","description":"A tea pot","image":"tea-pot.png","price":"9.99"}}'
  curl {projections}/{cart}/cartitems
  curl {commands}/submitcart/{cart} {json} -d '{{"cart_id":"{cart}"}}'
"#
    )
}
