//! The images and docker-compose.yml know the services as they are. That they run, `deploy/check compose` shows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::path::Path;

use dev::services::ALL;
use dev::topics::{INVENTORIES, PRICE_CHANGES, PUBLISHED_CARTS};

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

#[test]
fn every_service_has_an_image_that_asks_its_own_readiness_at_its_port() {
    let dockerfile = text("deploy/Dockerfile");
    for service in ALL {
        let name = service.name;
        let target = dockerfile.split(&format!("\nFROM service AS {name}\n")).nth(1).unwrap_or_else(|| panic!("no target {name}"));
        let target = target.split("\nFROM ").next().unwrap();
        for line in [
            format!("COPY --from=build /cartlog/target/release/{name} /usr/local/bin/"),
            format!("EXPOSE {}", service.default_port),
            format!("CMD [\"{name}\", \"--healthcheck\"]"),
            format!("ENTRYPOINT [\"{name}\"]"),
        ] {
            assert!(target.contains(&line), "{name} lacks {line}");
        }
        assert!(dockerfile.contains(&format!("--package {name} ")), "{name} is not built");
    }
}

#[test]
fn the_images_say_the_version_of_the_workspace() {
    let line = format!("\nARG CARTLOG_VERSION={}\n", env!("CARGO_PKG_VERSION"));
    assert!(text("deploy/Dockerfile").contains(&line), "deploy/Dockerfile has no line {line:?}");
}

#[test]
fn the_proxy_finds_each_service_with_routes_at_its_port() {
    let proxy = text("deploy/proxy/haproxy.cfg");
    for service in ALL {
        let document: serde_json::Value = serde_json::from_str(&text(&format!("services/{}/openapi.json", service.name))).unwrap();
        let common = ["/healthcheck", "/ready", "/metrics", "/lag", "/openapi.json"];
        let has_routes = document["paths"].as_object().unwrap().keys().any(|path| !common.contains(&path.as_str()));
        let line = format!("server-template {0}- 10 {0}:{1}", service.name, service.default_port);
        assert_eq!(proxy.contains(&line), has_routes, "{line}");
    }
}

#[test]
fn compose_makes_the_topics_that_are_used() {
    let compose = text("docker-compose.yml");
    for topic in [INVENTORIES, PRICE_CHANGES, PUBLISHED_CARTS] {
        assert!(compose.contains(&format!("topic {topic} --partitions 6\n")), "{topic}");
    }
    for topic in [INVENTORIES, PRICE_CHANGES] {
        assert!(compose.contains(&format!("topic {topic}.dead-letters --partitions 1 --config max.message.bytes=3145728\n")), "{topic}");
    }
}
