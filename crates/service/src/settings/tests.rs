use std::{
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use serde::Deserialize;

use super::{Common, DatabaseUrl, Invalid, Layers, SettingsError, TopicName, Validate, Whole, types::BootstrapServers};

const DEFAULTS: &str = r#"
    port = 8081
    database_url = "postgres://cartlog_commands@127.0.0.1:5432/cartlog"
    command_timeout_milliseconds = 10000
    kafka_bootstrap_servers = "127.0.0.1:9092"
    orders_topic = "orders"
    shortest_wait_milliseconds = 125
    longest_wait_milliseconds = 60000
"#;

#[derive(Debug, Deserialize)]
struct Own {
    kafka_bootstrap_servers: BootstrapServers,
    orders_topic: TopicName,
    shortest_wait_milliseconds: Whole<1, 60_000>,
    longest_wait_milliseconds: Whole<1, 3_600_000>,
}

impl Validate for Own {
    fn validate(&self) -> Result<(), Invalid> {
        let shortest = self.shortest_wait_milliseconds.get();
        if shortest <= self.longest_wait_milliseconds.get() {
            return Ok(());
        }
        let allowed = format!("at least shortest_wait_milliseconds, {shortest}");
        Err(Invalid { key: "longest_wait_milliseconds", allowed })
    }
}

fn read(file: Option<PathBuf>, environment: &[(&str, &str)]) -> Result<(Common, Own), SettingsError> {
    let value = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
    read_with(file, value)
}

fn read_with(file: Option<PathBuf>, environment: impl Fn(&str) -> Option<OsString>) -> Result<(Common, Own), SettingsError> {
    let layers = Layers::load(&[DEFAULTS], file, environment)?;
    Ok((layers.read()?, layers.read()?))
}

/// A settings file of its own, removed at the end.
struct SettingsFile(PathBuf);

impl SettingsFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cartlog-{}-{name}.toml", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }
}

impl Drop for SettingsFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn environment_wins_over_file_and_file_over_defaults() {
    let file = SettingsFile::new("order", "port = 9000\ndatabase_max_connections = 5\norders_topic = \"other\"");
    let environment = [("CARTLOG_PORT", "9001"), ("CARTLOG_CORS_ORIGINS", "https://a.example, http://localhost:3000")];
    let (common, own) = read(Some(file.0.clone()), &environment).unwrap();
    assert_eq!(common.port.get(), 9001);
    assert_eq!(common.database_max_connections.get(), 5);
    assert_eq!(common.shutdown_deadline_seconds.get(), 20);
    assert_eq!(common.cors_origins.iter().map(|o| &**o).collect::<Vec<_>>(), ["https://a.example", "http://localhost:3000"]);
    assert_eq!(&*own.orders_topic, "other");
}

#[test]
fn three_variables_have_standard_names_and_empty_is_unset() {
    let environment = [
        ("DATABASE_URL", "postgresql://me:pw@db/shop"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
        ("CARTLOG_PORT", ""),
    ];
    let (common, own) = read(None, &environment).unwrap();
    assert_eq!(common.database_url.expose(), "postgresql://me:pw@db/shop");
    assert_eq!(common.otel_exporter_otlp_endpoint.url().unwrap().as_str(), "http://collector:4318/");
    assert_eq!(common.port.get(), 8081);
    assert_eq!(&*own.kafka_bootstrap_servers, "a:1,b:2");
}

#[test]
fn wrong_value_is_named_with_key_origin_and_what_is_allowed() {
    for (variable, value, message) in [
        ("CARTLOG_PORT", "0", r#"port is "0" (environment variable CARTLOG_PORT), but it must be a whole number from 1 to 65535"#),
        ("CARTLOG_PORT", "http", r#"port is "http" (environment variable CARTLOG_PORT), but it must be a whole number from 1 to 65535"#),
        ("CARTLOG_LOG_FORMAT", "xml", "but it must be one of `auto`, `pretty`, `json`"),
        ("CARTLOG_LOG_FILTER", "info,=,", "but it must be a level (error,"),
        ("CARTLOG_BIND_ADDRESS", "localhost", "but it must be an IP address"),
        ("CARTLOG_CORS_ORIGINS", "*", r#"cors_origins is ["*"] (environment variable CARTLOG_CORS_ORIGINS)"#),
        ("CARTLOG_CORS_ORIGINS", "https://a.example/path", "without a path"),
        (
            "CARTLOG_ORDERS_TOPIC",
            "a b",
            r#"orders_topic is "a b" (environment variable CARTLOG_ORDERS_TOPIC), but it must be a topic's name"#,
        ),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost", "but it must be addresses of brokers, host:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "but it must be empty, or a URL"),
        (
            "CARTLOG_LONGEST_WAIT_MILLISECONDS",
            "100",
            r#"longest_wait_milliseconds is "100" (environment variable CARTLOG_LONGEST_WAIT_MILLISECONDS), but it must be at least shortest_wait_milliseconds, 125"#,
        ),
    ] {
        let error = read(None, &[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn unknown_variables_are_ignored() {
    assert!(read(None, &[("CARTLOG_PROT", "1"), ("PORT", "x"), ("CARTLOG_CONSUMER_GROUP", "a b")]).is_ok());
}

#[test]
fn value_that_is_not_utf_8_is_an_error_without_the_value() {
    let value = OsStr::from_bytes(b"postgres://me:hunter2\xff@db/shop");
    let error = read_with(None, |name| (name == "DATABASE_URL").then(|| value.to_owned())).unwrap_err().to_string();
    assert_eq!(error, "database_url is not UTF-8 (environment variable DATABASE_URL), but it must be text in UTF-8");
}

#[test]
fn wrong_value_in_the_file_names_the_file() {
    for (text, message) in [
        ("port = 70000", "port is 70000 (file "),
        ("port = true", "but it must be a whole number from 1 to 65535"),
        ("cors_origins = 5", "cors_origins is 5 (file "),
        ("prot = 1", "sets prot, which is unknown; known keys are background_threads, bind_address, "),
        ("port = ", "cannot be read: "),
    ] {
        let file = SettingsFile::new("wrong", text);
        let error = read(Some(file.0.clone()), &[]).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(&file.0.display().to_string()), "{error}");
    }
    let error = read(Some("/nowhere/settings.toml".into()), &[]).unwrap_err().to_string();
    assert!(error.starts_with("the settings file /nowhere/settings.toml (from CARTLOG_SETTINGS_FILE)"), "{error}");
}

#[test]
fn database_url_with_an_unreadable_parameter_is_refused() {
    for parameter in ["sslmode=on", "port=postgres", "statement-cache-capacity=-1", "hostaddr=db"] {
        let url = format!("postgres://me@db/shop?{parameter}");
        let error = read(None, &[("DATABASE_URL", &url)]).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("database_url is {url:?} (environment variable DATABASE_URL), but it must be a URL")),
            "{error}"
        );
    }
}

#[test]
fn secrets_are_never_shown() {
    for url in [
        "mysql://me:hunter2@db/shop",
        "postgres://me:hunter2@db",
        "host=db password=hunter2",
        "mysql://db/shop?password=hunter2",
        "postgres://me:hunter2@db:port/shop",
    ] {
        let error = read(None, &[("DATABASE_URL", url)]).unwrap_err().to_string();
        assert!(error.starts_with("database_url is ") && error.contains("must be a URL such as postgres://"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    for url in ["postgres://me:1/hunter2@db/shop", "postgres://me:1#hunter2@db/shop"] {
        let error = read(None, &[("DATABASE_URL", url)]).unwrap_err().to_string();
        assert!(error.contains("%2F for a slash") && !error.contains("hunter2"), "{error}");
    }
    let url: DatabaseUrl = "postgres://me:hunter2@db/shop?sslmode=disable".parse().unwrap();
    assert_eq!(format!("{url} {url:?}").matches("postgres://me:***@db/shop?sslmode=disable").count(), 2);
    let url: DatabaseUrl = "postgres://db/shop?user=me&password=hunter2".parse().unwrap();
    assert!(!format!("{url:?}").contains("hunter2"));
}
