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
    read_os(file, environment.iter().map(|(name, value)| (name.into(), value.into())))
}

fn read_os(file: Option<PathBuf>, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<(Common, Own), SettingsError> {
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
fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
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
fn three_variables_have_the_names_the_world_gives_them_and_an_empty_one_is_unset() {
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
fn a_wrong_value_is_named_with_its_key_its_origin_and_what_is_allowed() {
    for (variable, value, message) in [
        ("CARTLOG_PORT", "0", r#"port is 0 (from the environment, CARTLOG_PORT), but must be a whole number from 1 to 65535"#),
        ("CARTLOG_PORT", "http", r#"port is "http" (from the environment, CARTLOG_PORT), but must be a whole number from 1 to 65535"#),
        ("CARTLOG_LOG_FORMAT", "xml", "but must be one of auto, pretty, json"),
        ("CARTLOG_LOG_FILTER", "info,=,", "but must be a level (error,"),
        ("CARTLOG_BIND_ADDRESS", "localhost", "but must be an IP address"),
        ("CARTLOG_CORS_ORIGINS", "*", r#"cors_origins is ["*"] (from the environment, CARTLOG_CORS_ORIGINS)"#),
        ("CARTLOG_CORS_ORIGINS", "https://a.example/path", "without a path"),
        (
            "CARTLOG_ORDERS_TOPIC",
            "a b",
            r#"orders_topic is "a b" (from the environment, CARTLOG_ORDERS_TOPIC), but must be a topic's name"#,
        ),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost", "but must be addresses of brokers, host:port"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "but must be empty, or a URL"),
        (
            "CARTLOG_LONGEST_WAIT_MILLISECONDS",
            "100",
            r#"longest_wait_milliseconds is 100 (from the environment, CARTLOG_LONGEST_WAIT_MILLISECONDS), but must be at least shortest_wait_milliseconds, 125"#,
        ),
    ] {
        let error = read(None, &[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn an_unknown_variable_of_ours_is_named_with_what_is_known_and_those_of_other_programs_are_passed_over() {
    for unknown in ["CARTLOG_PROT", "CARTLOG_DATABASE_URL", "CARTLOG_port", "CARTLOG_"] {
        let error = read(None, &[(unknown, "1")]).unwrap_err().to_string();
        let named =
            format!("the environment sets {unknown}, which is unknown; known are CARTLOG_BACKGROUND_THREADS, CARTLOG_BIND_ADDRESS, ");
        assert!(error.starts_with(&named) && error.contains(", CARTLOG_ORDERS_TOPIC, ") && error.contains(", DATABASE_URL, "), "{error}");
        assert!(read(None, &[(unknown, "")]).is_ok(), "an empty one counts as unset");
    }
    for passed_over in ["CARTLOG_SETTINGS_FILE", "CARTLOG_CONSUMER_GROUP", "CARTLOG_COMMANDS_PORT", "PORT", "MY_CARTLOG_PORT"] {
        assert!(read(None, &[(passed_over, "0")]).is_ok(), "{passed_over}");
    }
}

#[test]
fn a_value_that_is_not_utf_8_is_named_with_its_key_and_without_the_value() {
    let value = OsStr::from_bytes(b"postgres://me:hunter2\xff@db/shop").to_owned();
    let error = read_os(None, [("DATABASE_URL".into(), value.clone())]).unwrap_err().to_string();
    assert_eq!(error, "database_url is not UTF-8 (from the environment, DATABASE_URL), but must be text in UTF-8");
    assert!(read_os(None, [("PATH".into(), value)]).is_ok(), "what is not ours may be anything");
}

#[test]
fn a_wrong_value_in_the_file_names_the_file() {
    for (text, message) in [
        ("port = 70000", "port is 70000 (from the file "),
        ("port = true", "but must be a whole number from 1 to 65535"),
        ("cors_origins = 5", "cors_origins is 5 (from the file "),
        ("prot = 1", "sets prot, which is unknown; known are background_threads, bind_address, "),
        ("port = ", "cannot be read: "),
    ] {
        let file = SettingsFile::new("wrong", text);
        let error = read(Some(file.0.clone()), &[]).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(&file.0.display().to_string()), "{error}");
    }
    let error = read(Some("/nowhere/settings.toml".into()), &[]).unwrap_err().to_string();
    assert!(error.starts_with("the settings file /nowhere/settings.toml (named by CARTLOG_SETTINGS_FILE)"), "{error}");
}

#[test]
fn a_database_url_with_a_parameter_that_cannot_be_read_is_a_wrong_setting() {
    for parameter in ["sslmode=on", "port=postgres", "statement-cache-capacity=-1", "hostaddr=db"] {
        let url = format!("postgres://me@db/shop?{parameter}");
        let error = read(None, &[("DATABASE_URL", &url)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("database_url is {url:?} (from the environment, DATABASE_URL), but must be a URL")), "{error}");
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
    let url: DatabaseUrl = "postgres://me:hunter2@db/shop?sslmode=disable".parse().unwrap();
    assert_eq!(format!("{url} {url:?}").matches("postgres://me:***@db/shop?sslmode=disable").count(), 2);
    let url: DatabaseUrl = "postgres://db/shop?user=me&password=hunter2".parse().unwrap();
    assert!(!format!("{url:?}").contains("hunter2"));
}
