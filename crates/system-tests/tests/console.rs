//! The console in a real browser: Chromium, driven over WebDriver, against real services. Needs the packages chromium and chromium-driver.
//!
//! With `CARTLOG_SCREENSHOTS` set to a folder, the tests write what they see there: the pictures of docs/console.md.
#![cfg(feature = "browser")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::time::Duration;

use embedded::layout::Layout;
use embedded::ports;
use embedded::process::Process;
use serde_json::{Value, json};
use shop::services::{COMMANDS, CONSOLE, Kind, PROJECTIONS, PUBLISHER, TRANSLATOR};
use system_tests::Shop;
use test_support::eventually;
use thirtyfour::prelude::*;
use tokio::process::Command;
use uuid::Uuid;

/// A window of 1280 × 800, and one of a phone.
const SCREEN: (u32, u32) = (1280, 800);
const PHONE: (u32, u32) = (390, 844);

/// A browser with one window. Dropping it kills the driver, and that ends the browser.
struct Browser {
    window: WebDriver,
    _driver: Process,
}

impl Browser {
    async fn open(test: &str) -> Self {
        let [port] = ports::free([None]).unwrap();
        let log = Layout::discover().unwrap().scratch(&format!("browser-{test}")).unwrap().join("chromedriver.log");
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let driver = Process::spawn("chromedriver", command, &log);
        let mut driver = driver.unwrap_or_else(|error| panic!("install the packages chromium and chromium-driver: {error}"));
        let url = format!("http://127.0.0.1:{port}");
        let status = format!("{url}/status");
        let ready = || async {
            let answer: Value =
                reqwest::get(&status).await.map_err(|error| error.to_string())?.json().await.map_err(|error| error.to_string())?;
            if answer["value"]["ready"] == true { Ok(()) } else { Err(answer.to_string()) }
        };
        driver.until_ready(Duration::from_secs(60), ready).await.unwrap();
        let mut wanted = DesiredCapabilities::chrome();
        // CI runs as root in a container.
        for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"] {
            wanted.add_arg(argument).unwrap();
        }
        let browser = Self { window: WebDriver::new(url, wanted).await.unwrap(), _driver: driver };
        browser.resize(SCREEN).await;
        browser
    }

    async fn command(&self, name: &str, parameters: Value) {
        self.window.cdp().send_raw(name, parameters).await.unwrap();
    }

    async fn resize(&self, (width, height): (u32, u32)) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.command("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.command("Emulation.setEmulatedMedia", features).await;
    }

    /// Waits until the page has an element whose text is as wanted.
    async fn until(&self, css: &str, wanted: impl Fn(&str) -> bool) -> WebElement {
        eventually(&format!("{css} is as wanted"), || async {
            // The page may replace the element meanwhile.
            let element = self.window.find(By::Css(css)).await.ok()?;
            wanted(&element.text().await.ok()?).then_some(element)
        })
        .await
    }

    async fn picture(&self, name: &str) {
        if let Some(folder) = std::env::var_os("CARTLOG_SCREENSHOTS").map(PathBuf::from) {
            std::fs::create_dir_all(&folder).unwrap();
            self.window.screenshot(&folder.join(format!("{name}.png"))).await.unwrap();
        }
    }

    /// Nothing of a page is wider than the window, except what scrolls by itself.
    async fn fits(&self) {
        let widths = self.window.execute("return [document.documentElement.scrollWidth, window.innerWidth]", vec![]).await.unwrap();
        let [page, window] = widths.convert::<[u32; 2]>().unwrap();
        assert!(page <= window, "{} is {page} wide in a window of {window}", self.window.current_url().await.unwrap());
    }
}

/// A shop whose services and console run.
async fn shop(test: &str, services: &[Kind]) -> Shop {
    let mut shop = Shop::new(test).await;
    shop.start(&[services, &[CONSOLE]].concat()).await;
    shop
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka, the binaries and Chromium: cargo dev test"]
async fn board_lights_up_when_a_cart_is_filled() {
    let shop = shop("console-board", &[COMMANDS, TRANSLATOR, PROJECTIONS, PUBLISHER]).await;
    let browser = Browser::open("board").await;
    browser.window.goto(format!("{}/", shop.url(CONSOLE))).await.unwrap();
    browser.until("#event-item-added .count", |text| text == "0").await;
    assert!(browser.window.find(By::Css("#event-item-added.lit")).await.is_err());

    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    browser.until("#event-item-added.lit .count", |text| text.ends_with('1')).await;
    browser.picture("board").await;
    browser.until("#command-add-item .count", |text| text.ends_with('1')).await;
    assert_eq!(browser.until("#event-cart-submitted .count", |_| true).await.text().await.unwrap(), "0");
    assert_eq!(shop.submit(cart).await.0, 200);
    browser.until("#event-cart-published .count", |text| text.ends_with('1')).await;

    browser.prefer("dark").await;
    browser.fits().await;
    browser.picture("board-dark").await;
    // A card leads to its slice, by keyboard, too.
    browser.until("#event-item-added", |_| true).await.send_keys(Key::Enter).await.unwrap();
    browser.until("h1", |text| text == "Add Item").await;
    browser.until("#newest", |text| text.contains("A tea pot")).await;
    browser.picture("slice-dark").await;
    browser.prefer("light").await;
    browser.window.goto(format!("{}/console/projections", shop.url(CONSOLE))).await.unwrap();
    browser.until("#projections", |text| text.contains("publish_cart")).await;
    browser.picture("projections").await;
    browser.resize(PHONE).await;
    for page in ["", "/log", "/carts", "/projections", "/attention", "/slices/submit-cart", &format!("/carts/{cart}"), "/log/1"] {
        browser.window.goto(format!("{}/console{page}", shop.url(CONSOLE))).await.unwrap();
        browser.fits().await;
    }
    browser.picture("event-phone").await;
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka, the binaries and Chromium: cargo dev test"]
async fn slider_shows_the_cart_of_each_position() {
    let shop = shop("console-slider", &[COMMANDS, PROJECTIONS]).await;
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    let (kept, removed) = (Uuid::now_v7(), Uuid::now_v7());
    for (item, price) in [(kept, "1.50"), (removed, "20.00")] {
        let body = system_tests::item(cart, item, product, price);
        assert_eq!(shop.post(COMMANDS, &format!("/additem/{cart}"), &body).await.0, 200);
    }
    let browser = Browser::open("slider").await;
    browser.window.goto(format!("{}/console/carts/{cart}", shop.url(CONSOLE))).await.unwrap();
    browser.until("#items", |text| text.contains("Total 21.50")).await;
    // Another window shows the change as soon as it happens.
    assert_eq!(shop.post(COMMANDS, &format!("/removeitem/{cart}"), &json!({"cart_id": cart, "item_id": removed})).await.0, 200);
    browser.until("#items", |text| text.contains("Total 1.50")).await;
    browser.until("#slider input[max='4']", |_| true).await;

    for (key, total, after) in
        [(Key::Left, "21.50", "After 3 of 4"), (Key::Left, "1.50", "After 2 of 4"), (Key::Left, "0.00", "After 1 of 4")]
    {
        browser.window.find(By::Css("#slider input")).await.unwrap().send_keys(key).await.unwrap();
        browser.until("#state", |text| text.contains(after) && text.contains(&format!("Total {total}"))).await;
    }
    let slider = browser.window.find(By::Css("#slider input")).await.unwrap();
    slider.send_keys(Key::Right).await.unwrap();
    slider.send_keys(Key::Right).await.unwrap();
    browser.until("#state", |text| text.contains("After 3 of 4") && text.contains("Total 21.50")).await;
    assert!(browser.window.current_url().await.unwrap().as_str().ends_with("step=3"), "the address names what is shown");
    browser.picture("cart").await;
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka, the binaries and Chromium: cargo dev test"]
async fn dead_letter_is_found_and_dismissed() {
    let shop = shop("console-letter", &[TRANSLATOR]).await;
    shop.produce("inventories", &[(Uuid::now_v7(), json!({"product_uuid": "<i>none</i>", "inventory": 1}))]).await;
    let topic = format!("{}.dead-letters", shop.topic("inventories"));
    let browser = Browser::open("letter").await;
    browser.window.goto(format!("{}/console/attention", shop.url(CONSOLE))).await.unwrap();
    let place = format!("{topic}/0/0");
    browser.until("#letters", |text| text.contains(&place)).await;
    browser.picture("attention").await;
    browser.window.find(By::LinkText(&place)).await.unwrap().click().await.unwrap();
    browser.until("pre", |text| text.contains("<i>none</i>")).await;
    browser.window.find(By::LinkText("Dismiss")).await.unwrap().click().await.unwrap();
    browser.until("h1", |text| text == "Dismiss dead letters").await;
    browser.picture("confirm").await;
    browser.window.find(By::Css("input[name=by]")).await.unwrap().send_keys("Ada").await.unwrap();
    browser.window.find(By::Css("input[name=reason]")).await.unwrap().send_keys("not a product").await.unwrap();
    browser.window.find(By::Css("button.danger")).await.unwrap().click().await.unwrap();
    browser.until("h1", |text| text == "Attention").await;
    eventually("the letter is gone", || async {
        let page = browser.window.source().await.ok()?;
        (!page.contains(&place)).then_some(())
    })
    .await;
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL, Kafka, the binaries and Chromium: cargo dev test"]
async fn pages_are_readable_without_javascript() {
    let shop = shop("console-plain", &[COMMANDS, PROJECTIONS]).await;
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    let browser = Browser::open("plain").await;
    browser.command("Emulation.setScriptExecutionDisabled", json!({"value": true})).await;
    let read = async |page: String| {
        browser.window.goto(format!("{}/console{page}", shop.url(CONSOLE))).await.unwrap();
        browser.window.source().await.unwrap()
    };
    eventually("the board has counted", || async { read(String::new()).await.contains("data-pulse=\"1\"").then_some(()) }).await;
    assert!(read("/log".into()).await.contains("A tea pot"));
    assert!(read(format!("/carts/{cart}?step=1")).await.contains("Total <strong>0.00</strong>"));
    assert!(read(format!("/carts/{cart}?step=2")).await.contains("Total <strong>9.99</strong>"));
    assert!(read("/slices/add-item".into()).await.contains("refuses a fourth item"));
    assert!(read("/projections".into()).await.contains("cart_items"));
    // A change asks on a page of its own, and its form needs no script.
    assert!(read("/projections/cart_items/pause".into()).await.contains("name=\"reason\""));
    browser.window.find(By::Css("input[name=by]")).await.unwrap().send_keys("Ada").await.unwrap();
    browser.window.find(By::Css("input[name=reason]")).await.unwrap().send_keys("a test").await.unwrap();
    browser.window.find(By::Css("button.danger")).await.unwrap().click().await.unwrap();
    eventually("the projection is paused", || async {
        let paused: bool =
            sqlx::query_scalar("SELECT bool_or(paused) FROM projection WHERE name = 'cart_items'").fetch_one(&shop.pool).await.unwrap();
        paused.then_some(())
    })
    .await;
    shop.stop().await;
}
