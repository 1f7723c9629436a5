//! The images, docker-compose.yml and the manifests for Kubernetes know the services as they are. That they run, `deploy/check compose` and
//! `deploy/check kubernetes` show.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot continue fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shop::services::{ALL, CONSOLE, Kind, PROJECTIONS, PUBLISHER, TRANSLATOR, WITH_CONSOLE};
use shop::topics::{INVENTORIES, PRICE_CHANGES, PUBLISHED_CARTS};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The listeners of the proxy and the Gateways. The tag of an operation is its listener, or `operations` for one that only the service's own
/// port answers.
const LISTENERS: [&str; 2] = ["public", "internal"];

/// The routes of a service's document, each with its operations' tag.
fn tagged_routes(service: Kind) -> Vec<(String, String)> {
    let file = format!("services/{}/openapi.json", service.name);
    let document: Value = serde_json::from_str(&text(&file)).unwrap();
    let mut routes = vec![];
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let tag = operation["tags"][0].as_str().unwrap_or_default().to_owned();
            let is_known = LISTENERS.contains(&tag.as_str()) || tag == "operations";
            assert!(is_known, "{file}, {method} {path}: add tag = \"public\", or \"internal\" for the back office; it has {tag:?}");
            routes.push((tag, path.clone()));
        }
    }
    routes
}

/// Holds, without these tools, the rules of Redocly, Spectral and the generators of clients.
#[test]
fn openapi_documents_are_complete() {
    for service in ALL {
        let file = format!("services/{}/openapi.json", service.name);
        let document: Value = serde_json::from_str(&text(&file)).unwrap();
        assert_eq!(document["servers"][0]["url"], format!("http://127.0.0.1:{}", service.default_port), "{file}");
        assert_eq!(document["security"], json!([]), "{file}");
        assert_references(&file, &document, &document);
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let place = format!("{file}, {method} {path}");
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{place}: the operationId is used twice");
                if operation["tags"][0] == "operations" {
                    continue;
                }
                let answers = operation["responses"].as_object().unwrap();
                let errors: BTreeSet<_> = answers.keys().map(String::as_str).filter(|status| !status.starts_with('2')).collect();
                let of_all = ["400", "408", "414", "429", "431", "500", "502", "503", "504"];
                assert!(errors.is_superset(&BTreeSet::from(of_all)), "{place}: only {errors:?}");
                for status in errors {
                    let answer = resolve(&document, &answers[status]);
                    let codes = answer["content"]["application/json"]["schema"]["properties"]["code"]["enum"].as_array();
                    let codes = codes.unwrap_or_else(|| panic!("{place}: {status} has no codes"));
                    let is_word = |code: &Value| code.as_str().unwrap().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                    assert!(!codes.is_empty() && codes.iter().all(is_word), "{place}: {status} has the codes {codes:?}");
                }
                if method == "post" {
                    assert!(answers["200"]["headers"]["cartlog-position"].is_object(), "{place}");
                    // Both forms of a pair, because many generators do not know the first.
                    let pair = &answers["200"]["content"]["application/json"]["schema"];
                    assert!(pair["prefixItems"][1]["type"] == "integer" && pair["items"]["oneOf"].is_array(), "{place}: {pair}");
                }
            }
        }
    }
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    value["$ref"].as_str().map_or(value, |reference| document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null))
}

fn assert_references(file: &str, document: &Value, value: &Value) {
    if let Some(reference) = value["$ref"].as_str() {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{file}: nothing at {reference}");
    }
    match value {
        Value::Object(parts) => parts.values().for_each(|part| assert_references(file, document, part)),
        Value::Array(parts) => parts.iter().for_each(|part| assert_references(file, document, part)),
        _ => {}
    }
}

#[test]
fn images_check_readiness_at_the_services_ports() {
    let dockerfile = text("deploy/Dockerfile");
    for service in WITH_CONSOLE {
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
        // The console's package has another name than its program.
        let package = if name == CONSOLE.name { "cartlog-console" } else { name };
        assert!(dockerfile.contains(&format!("--package {package} ")), "{name} is not built");
    }
}

#[test]
fn images_have_the_version_of_the_workspace() {
    let line = format!("\nARG CARTLOG_VERSION={}\n", env!("CARGO_PKG_VERSION"));
    assert!(text("deploy/Dockerfile").contains(&line), "deploy/Dockerfile has no line {line:?}");
}

#[test]
fn proxy_finds_each_service_at_its_port() {
    let proxy = text("deploy/proxy/haproxy.cfg");
    for service in WITH_CONSOLE {
        let line = format!("server-template {0}- 10 \"{0}${{REPLICAS_SUFFIX}}:{1}\"", service.name, service.default_port);
        assert!(proxy.contains(&line), "{line}");
    }
}

#[test]
fn compose_creates_the_topics() {
    let compose = text("docker-compose.yml");
    assert!(compose.contains(&format!("topic {PUBLISHED_CARTS} --partitions 6\n")));
    for topic in [INVENTORIES, PRICE_CHANGES] {
        assert!(compose.contains(&format!("topic {topic} --partitions 6 --config max.message.bytes=81920\n")), "{topic}");
        assert!(compose.contains(&format!("topic {topic}.dead-letters --partitions 1 --config max.message.bytes=3145728\n")), "{topic}");
    }
}

/// The documents of a file of Kubernetes' objects.
fn objects(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// Every object that the base and what else is ours consists of, with its file.
fn all_objects() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for directory in ["deploy/kubernetes/base", "deploy/kubernetes/overlays/dev", "deploy/proxy/kubernetes"] {
        let mut files: Vec<_> = std::fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        for file in files.iter().filter(|file| *file != "kustomization.yaml") {
            let path = format!("{directory}/{}", file.to_str().unwrap());
            all.extend(objects(&path).into_iter().map(|object| (path.clone(), object)));
        }
    }
    all
}

/// Returns the pod that an object creates, if it creates any.
fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str().unwrap() {
        "Deployment" | "StatefulSet" | "Job" => Some(&object["spec"]["template"]),
        "CronJob" => Some(&object["spec"]["jobTemplate"]["spec"]["template"]),
        _ => None,
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|of| pod["spec"][of].as_array().map_or(&[][..], Vec::as_slice))
}

#[test]
fn kubernetes_runs_each_service_with_its_port_role_and_probes() {
    for service in WITH_CONSOLE {
        let name = service.name;
        let objects = objects(&format!("deploy/kubernetes/base/{name}.yaml"));
        let deployment = of_kind(&objects, "Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["image"], format!("cartlog/{name}"));
        // The dashboards and the proxy find it by these.
        assert_eq!(container["ports"], json!([{"name": "http", "containerPort": service.default_port}]), "{name}");
        assert_eq!(deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"], name);
        for (probe, path) in [("startupProbe", "/healthcheck"), ("livenessProbe", "/healthcheck"), ("readinessProbe", "/ready")] {
            assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "http"}), "{name}, {probe}");
        }
        let url = container["env"].as_array().unwrap().iter().find(|one| one["name"] == "DATABASE_URL").unwrap();
        assert_eq!(url["value"], format!("postgres://{}@$(DATABASE_ADDRESS)", service.role), "{name}");
        let secret = service.role.replace('_', "-");
        assert_eq!(pod["volumes"][0]["projected"]["sources"][0]["secret"]["name"], secret, "{name}");
        let spec = &of_kind(&objects, "Service")["spec"];
        assert_eq!(spec["ports"][0]["port"], service.default_port, "{name}");
        assert_eq!(of_kind(&objects, "PodDisruptionBudget")["spec"]["selector"], deployment["spec"]["selector"], "{name}");

        assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({"maxUnavailable": 0, "maxSurge": 1}), "{name}");
        let settings = text("deploy/kubernetes/base/kustomization.yaml");
        let delay = settings.lines().find_map(|line| line.trim().strip_prefix("- CARTLOG_SHUTDOWN_DELAY_SECONDS=")).unwrap();
        // The deadline's default, and the last traces.
        let longest = delay.parse::<u64>().unwrap() + 20;
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > longest + 5, "{name} is killed before it has ended");
    }
}

#[test]
fn deployments_differ_only_in_name_role_and_port() {
    let alike = |service: Kind| {
        let role = service.role.trim_start_matches("cartlog_");
        text(&format!("deploy/kubernetes/base/{}.yaml", service.name))
            .replace(&format!("cartlog_{role}"), "ROLE")
            .replace(&format!("cartlog-{role}"), "SECRET")
            .replace(service.name, "NAME")
            .replace(&service.default_port.to_string(), "PORT")
            .replace("    cartlog/needs-kafka: \"true\"\n", "")
    };
    for service in WITH_CONSOLE {
        assert_eq!(alike(service), alike(ALL[0]), "{}", service.name);
    }
}

#[test]
fn kubernetes_containers_are_confined_and_limited() {
    let all = all_objects();
    let pods: Vec<_> = all.iter().filter_map(|(path, object)| Some((path, pod(object)?))).collect();
    assert!(pods.len() >= 9, "only {} kinds of pods are found", pods.len());
    for (path, pod) in pods {
        let spec = &pod["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false, "{path}");
        assert_eq!(spec["enableServiceLinks"], false, "{path}");
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{path}");
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{path}");
        for container in containers(pod) {
            let name = container["name"].as_str().unwrap();
            let confined = &container["securityContext"];
            assert_eq!(confined["allowPrivilegeEscalation"], false, "{path}, {name}");
            assert_eq!(confined["capabilities"], json!({"drop": ["ALL"]}), "{path}, {name}");
            // Kafka's image writes its settings beside its programs.
            assert!(
                confined["readOnlyRootFilesystem"] == true || (name == "kafka" && confined["readOnlyRootFilesystem"].is_null()),
                "{path}, {name}"
            );
            for of in ["requests", "limits"] {
                for what in ["cpu", "memory"] {
                    assert!(container["resources"][of][what].is_string(), "{path}, {name}: no {of} of {what}");
                }
            }
        }
    }
}

/// The roles that the deployments give passwords: of the services and of cartctl.
#[test]
fn every_role_has_a_password() {
    let roles: Vec<_> = ALL.iter().map(|service| service.role).chain(["cartlog_operator"]).collect();
    let (compose, migrate) = (text("docker-compose.yml"), text("deploy/kubernetes/base/migrate.yaml"));
    for role in &roles {
        let name = role.trim_start_matches("cartlog_");
        assert!(compose.contains(&format!("DATABASE_URL: postgres://{role}@postgres:5432/cartlog")), "{role}");
        assert!(compose.contains(&format!("CARTLOG_DATABASE_PASSWORD_FILE: /run/secrets/{name}_password")), "{role}");
        let secret = format!("- secret: {{ name: cartlog-{name}, items: [{{ key: password, path: {name}_password }}] }}");
        assert!(migrate.contains(&secret), "{role}");
    }
    let names: Vec<_> = roles.iter().map(|role| role.trim_start_matches("cartlog_")).collect();
    assert!(migrate.contains("- name: CARTLOG_ROLE_PASSWORDS\n              value: /run/secrets/roles\n"), "{migrate}");
    assert!(compose.contains("CARTLOG_ROLE_PASSWORDS: /run/secrets\n"), "{compose}");
    let mounted = between(between(&compose, "CARTLOG_ROLE_PASSWORDS", "deploy:"), "secrets: [", "]");
    let files: Vec<_> = mounted.split(", ").map(|file| file.trim_end_matches("_password")).collect();
    assert_eq!(set(&files.join(" ")), set(&format!("postgres {}", names.join(" "))));
    assert_eq!(set(between(&text("deploy/kubernetes/make-secrets"), "for name in ", "; do")), set(&format!("owner {}", names.join(" "))));
    let made = text("deploy/make-secrets");
    assert_eq!(set(between(&made, "for name in ", "; do")), set(&format!("postgres grafana {}", names.join(" "))));

    let cartctl = text("deploy/kubernetes/base/cartctl.yaml");
    assert!(cartctl.contains("value: postgres://cartlog_operator@$(DATABASE_ADDRESS)\n"), "{cartctl}");
    assert!(cartctl.contains("- secret: { name: cartlog-operator, items: [{ key: password, path: password }] }\n"), "{cartctl}");
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split(from).nth(1).and_then(|rest| rest.split(to).next()).unwrap_or_else(|| panic!("no {from:?} in {text}"))
}

fn set(words: &str) -> BTreeSet<&str> {
    words.split(' ').collect()
}

#[test]
fn manifests_contain_no_password() {
    for (path, object) in all_objects() {
        assert_ne!(object["kind"], "Secret", "{path}");
    }
    for service in WITH_CONSOLE {
        let file = text(&format!("deploy/kubernetes/base/{}.yaml", service.name));
        assert!(file.contains("value: /run/secrets/cartlog/password\n"), "{}", service.name);
    }
}

#[test]
fn kubernetes_creates_the_topics() {
    let job = text("deploy/kubernetes/base/topics.yaml");
    let resources = objects("deploy/kubernetes/components/operators/topics.yaml");
    let resource =
        |name: &str| &resources.iter().find(|object| object["metadata"]["name"] == name).unwrap_or_else(|| panic!("no {name}"))["spec"];
    assert!(job.contains(&format!("topic {PUBLISHED_CARTS} --partitions 6\n")));
    for topic in [INVENTORIES, PRICE_CHANGES, PUBLISHED_CARTS] {
        assert_eq!(resource(topic)["partitions"], 6, "{topic}");
    }
    for topic in [INVENTORIES, PRICE_CHANGES] {
        assert!(job.contains(&format!("topic {topic} --partitions 6 --config max.message.bytes=81920\n")), "{topic}");
        assert_eq!(resource(topic)["config"]["max.message.bytes"], 81_920, "{topic}");
        let dead = format!("{topic}.dead-letters");
        assert!(job.contains(&format!("topic {dead} --partitions 1 --config max.message.bytes=3145728\n")), "{topic}");
        assert_eq!(resource(&dead)["partitions"], 1, "{topic}");
        assert_eq!(resource(&dead)["config"]["max.message.bytes"], 3_145_728, "{topic}");
    }
}

#[test]
fn autoscaling_ends_at_the_number_of_segments_or_partitions() {
    let scaled = objects("deploy/kubernetes/components/keda/scaled.yaml");
    for service in [PROJECTIONS, PUBLISHER, TRANSLATOR] {
        let name = service.name;
        let spec = &scaled.iter().find(|object| object["metadata"]["name"] == name).unwrap_or_else(|| panic!("no {name}"))["spec"];
        // Segments, and partitions.
        assert_eq!(spec["maxReplicaCount"], if name == TRANSLATOR.name { 6 } else { 8 }, "{name}");
        for trigger in spec["triggers"].as_array().unwrap() {
            assert_eq!(trigger["metadata"]["url"], format!("http://{name}.cartlog.svc:{}/lag", service.default_port), "{name}");
        }
    }
}

/// The console's pages.
const PAGES: &str = "^/console(/.*)?$";

/// A route, by its listener, its service and the expression of its path.
type Route = (String, String, String);

/// The routes behind each listener. Those that every service may have are under the service's name.
fn documented_routes() -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    for service in ALL {
        for (tag, path) in tagged_routes(service).into_iter().filter(|(tag, _)| LISTENERS.contains(&tag.as_str())) {
            let expression = if matches!(path.as_str(), "/lag" | "/openapi.json") {
                format!("/{}{path}", service.name)
            } else {
                let parts: Vec<_> = path.split('/').map(|part| if part.starts_with('{') { "[^/]+" } else { part }).collect();
                format!("^{}$", parts.join("/"))
            };
            routes.insert((tag, service.name.to_owned(), expression));
        }
    }
    routes
}

/// The routes of the documents, and the console's pages, which have one rule together.
fn assert_routes(file: &str, found: &BTreeSet<Route>) {
    let mut documented = documented_routes();
    documented.insert(("internal".to_owned(), CONSOLE.name.to_owned(), PAGES.to_owned()));
    let missing: Vec<_> = documented.difference(found).collect();
    let unknown: Vec<_> = found.difference(&documented).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "{file} lacks {missing:#?}, and has beyond the documents {unknown:#?}");
}

#[test]
fn proxy_routes_what_the_openapi_documents_have() {
    let file = "deploy/proxy/haproxy.cfg";
    let mut found = BTreeSet::new();
    let mut section = String::new();
    for line in text(file).lines() {
        // A line that begins with a dot is a condition, within a section too.
        if !line.starts_with([' ', '#', '.']) && !line.is_empty() {
            section = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        let Some((service, condition)) = line.trim().strip_prefix("use_backend ").and_then(|rule| rule.split_once(" if { ")) else {
            continue;
        };
        let (by, paths) = condition.strip_suffix(" }").unwrap().split_once(' ').unwrap();
        assert!(matches!(by, "path" | "path_reg"), "{line}");
        found.extend(paths.split(' ').map(|path| (section.clone(), service.trim().to_owned(), path.to_owned())));
    }
    assert_routes(file, &found);
}

#[test]
fn gateway_routes_what_the_openapi_documents_have() {
    let file = "deploy/kubernetes/components/gateway/gateway.yaml";
    let gateway = objects(file);
    let mut found = BTreeSet::new();
    for route in gateway.iter().filter(|object| object["kind"] == "HTTPRoute") {
        let gateway = route["spec"]["parentRefs"][0]["name"].as_str().unwrap();
        assert_eq!(route["metadata"]["name"], gateway, "{file}");
        let listener = if gateway == "shop-internal" { "internal" } else { "public" };
        for rule in route["spec"]["rules"].as_array().unwrap() {
            let service = rule["backendRefs"][0]["name"].as_str().unwrap();
            for path in rule["matches"].as_array().unwrap().iter().map(|one| &one["path"]) {
                let value = path["value"].as_str().unwrap();
                let expression = match path["type"].as_str().unwrap() {
                    "PathPrefix" if value == "/console" => PAGES.to_owned(),
                    "PathPrefix" => format!("^{value}/[^/]+$"),
                    _ => value.to_owned(),
                };
                found.insert((listener.to_owned(), service.to_owned(), expression));
            }
            let kind = WITH_CONSOLE.into_iter().find(|kind| kind.name == service).unwrap();
            assert_eq!(rule["backendRefs"], json!([{"name": service, "port": kind.default_port}]), "{file}");
        }
    }
    assert_routes(file, &found);
}

#[test]
fn console_is_reached_by_its_pages_only() {
    let routes = tagged_routes(CONSOLE);
    for (tag, path) in routes.iter().filter(|(_, path)| path.starts_with("/console")) {
        assert_eq!(tag, "internal", "{path}");
    }
    let others: BTreeSet<_> = routes.iter().filter(|(_, path)| !path.starts_with("/console")).map(|(_, path)| path.as_str()).collect();
    assert_eq!(others, set("/ /healthcheck /metrics /openapi.json /ready"));
}

#[test]
fn back_office_is_not_public() {
    let public: Vec<_> = documented_routes().into_iter().filter(|(listener, ..)| listener == "public").map(|(.., path)| path).collect();
    assert!(!public.is_empty());
    let back_office = [
        "/changeinventory/",
        "/changeprice/",
        "/cartswithproducts/",
        "/inventories/",
        "/changedprices/",
        "/lag",
        "/openapi.json",
        "/console",
    ];
    for path in public {
        assert!(!back_office.iter().any(|one| path.contains(one)), "shoppers reach {path}");
    }
}

#[test]
fn compose_binds_the_back_office_to_loopback() {
    let compose: Value = serde_saphyr::from_str(&text("docker-compose.yml")).unwrap();
    let ports = compose["services"]["proxy"]["ports"].as_array().unwrap();
    let internal = ports.iter().filter(|port| port.as_str().unwrap().ends_with(":8090")).collect::<Vec<_>>();
    assert_eq!(internal, [&json!("127.0.0.1:${CARTLOG_INTERNAL_PORT:-8090}:8090")]);
}

#[test]
fn compose_keeps_the_proxy_from_the_servers() {
    let compose: Value = serde_saphyr::from_str(&text("docker-compose.yml")).unwrap();
    let services = compose["services"].as_object().unwrap();
    let networks = |service: &str| -> BTreeSet<String> {
        let of = services[service]["networks"].as_array().unwrap_or_else(|| panic!("{service} is in the default network"));
        of.iter().map(|network| network.as_str().unwrap().to_owned()).collect()
    };
    for server in ["postgres", "kafka"] {
        assert!(networks("proxy").is_disjoint(&networks(server)), "the proxy reaches {server}");
    }
    for service in WITH_CONSOLE {
        assert!(!networks("proxy").is_disjoint(&networks(service.name)), "the proxy does not reach {}", service.name);
    }
}
