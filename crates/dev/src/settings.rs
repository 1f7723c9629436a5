//! The settings of the development stack, from the environment.

use std::time::Duration;

use embedded::error::Error;
use embedded::ports;
use shop::services::{self, Kind};

/// The development stack's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A PostgreSQL to use instead of our own.
    pub database_url: Option<String>,
    /// A Kafka to use instead of our own.
    pub kafka_bootstrap_servers: Option<String>,
    service_ports: [u16; 5],
    /// CARTLOG_PORT, which names one port for all services.
    one_port: Option<String>,
    shutdown_deadline: Duration,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A value is wrong, or two services have the same port.
    pub fn from_environment() -> Result<Self, Error> {
        Self::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut service_ports = [0; 5];
        for (index, kind) in services::WITH_CONSOLE.iter().enumerate() {
            let port = match variable(kind.port_setting) {
                None => kind.default_port,
                Some(text) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                    let setting = kind.port_setting;
                    Error::Refused(format!("{setting} is {text:?}, but it must be a port from 1 to 65535"))
                })?,
            };
            if let Some(other) = service_ports[..index].iter().position(|other| *other == port) {
                return Err(Error::Refused(format!(
                    "{} and {} are both {port}, but each service needs its own port",
                    services::WITH_CONSOLE[other].port_setting,
                    kind.port_setting
                )));
            }
            service_ports[index] = port;
        }
        let seconds = variable("CARTLOG_SHUTDOWN_DEADLINE_SECONDS").and_then(|text| text.parse().ok()).unwrap_or(20);
        Ok(Self {
            database_url: variable("DATABASE_URL"),
            kafka_bootstrap_servers: variable("KAFKA_BOOTSTRAP_SERVERS"),
            service_ports,
            one_port: variable("CARTLOG_PORT"),
            shutdown_deadline: Duration::from_secs(seconds),
        })
    }

    /// Each service with its port.
    pub fn services(&self) -> impl Iterator<Item = (Kind, u16)> + use<> {
        services::WITH_CONSOLE.into_iter().zip(self.service_ports)
    }

    /// The time in which the services must stop.
    #[must_use]
    pub fn shutdown_deadline(&self) -> Duration {
        self.shutdown_deadline
    }

    /// Checks that the services' ports are free.
    ///
    /// # Errors
    /// CARTLOG_PORT is set, or ports are in use. The error names each port's setting and the process that uses the port.
    pub fn check_ports(&self) -> Result<(), Error> {
        if let Some(port) = &self.one_port {
            let settings = services::WITH_CONSOLE.map(|kind| kind.port_setting).join(", ");
            return Err(Error::Refused(format!(
                "CARTLOG_PORT is {port:?}, but the services cannot share a port. Unset it, and set {settings} instead."
            )));
        }
        let taken: Vec<String> = self
            .services()
            .filter(|(_, port)| !ports::is_free(*port))
            .map(|(kind, port)| {
                let by = ports::listener(port).map(|by| format!(" by {by}")).unwrap_or_default();
                format!("port {port} of {} is in use{by}: free the port, or set {} to another", kind.name, kind.port_setting)
            })
            .collect();
        if taken.is_empty() { Ok(()) } else { Err(Error::Refused(taken.join("\n"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, Error> {
        Settings::read(|name| pairs.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn default_ports_are_8081_to_8085() {
        let settings = read(&[("CARTLOG_PROJECTIONS_PORT", "9000")]).unwrap();
        let ports: Vec<u16> = settings.services().map(|(_, port)| port).collect();
        assert_eq!(ports, [8081, 8082, 9000, 8084, 8085]);
    }

    #[test]
    fn wrong_port_is_refused_with_its_setting() {
        for wrong in ["0", "65536", "http"] {
            let error = read(&[("CARTLOG_PUBLISHER_PORT", wrong)]).unwrap_err().to_string();
            assert!(error.contains("CARTLOG_PUBLISHER_PORT") && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn same_port_for_two_services_is_refused() {
        let error = read(&[("CARTLOG_TRANSLATOR_PORT", "8081")]).unwrap_err().to_string();
        assert!(error.contains("CARTLOG_COMMANDS_PORT and CARTLOG_TRANSLATOR_PORT"), "{error}");
    }

    #[test]
    fn one_port_for_all_services_is_refused() {
        let error = read(&[("CARTLOG_PORT", "9000")]).unwrap().check_ports().unwrap_err().to_string();
        assert!(error.contains("CARTLOG_PORT is \"9000\"") && error.contains("CARTLOG_COMMANDS_PORT, CARTLOG_TRANSLATOR_PORT"), "{error}");
    }

    #[test]
    fn port_in_use_is_refused_with_its_setting() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let settings = read(&[("CARTLOG_COMMANDS_PORT", &port)]).unwrap();
        let error = settings.check_ports().unwrap_err().to_string();
        assert!(error.contains(&port) && error.contains("CARTLOG_COMMANDS_PORT"), "{error}");
    }
}
