//! The addresses of the shop in which the day is simulated.

use crate::state::Up;
use embedded::error::Error;
use shop::services::{COMMANDS, Kind, PROJECTIONS};

/// The shop's internal listener, if one proxy serves all services.
const INTERNAL: &str = "INTERNAL_URL";
const DATABASE: &str = "DATABASE_URL";
const KAFKA: &str = "KAFKA_BOOTSTRAP_SERVERS";

/// The addresses that the day needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The URL of cart-commands, without a slash at the end.
    pub commands: String,
    /// The URL of cart-projections, without a slash at the end.
    pub projections: String,
    /// The URL that answers the queries of the back office, without a slash at the end.
    pub internal: String,
    /// The database, for its owner.
    pub database: String,
    /// Kafka's bootstrap servers.
    pub kafka: String,
}

impl Addresses {
    /// Reads the addresses of a shop that runs elsewhere, from the variables that `cargo dev env` prints. None if no service is named.
    ///
    /// # Errors
    /// Some of them are missing.
    pub(crate) fn given(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let url = |name: &str| value(name).map(|url| url.trim_end_matches('/').to_owned());
        match (url(COMMANDS.variable), url(PROJECTIONS.variable), value(DATABASE), value(KAFKA)) {
            // The servers alone are settings of `cargo dev up`.
            (None, None, ..) => Ok(None),
            (Some(commands), Some(projections), Some(database), Some(kafka)) => {
                let internal = url(INTERNAL).unwrap_or_else(|| projections.clone());
                Ok(Some(Self { commands, projections, internal, database, kafka }))
            }
            (commands, projections, database, kafka) => {
                let all = [(COMMANDS.variable, commands), (PROJECTIONS.variable, projections), (DATABASE, database), (KAFKA, kafka)];
                let names =
                    |given: bool| all.iter().filter(|(_, value)| value.is_some() == given).map(|(name, _)| *name).collect::<Vec<_>>();
                let (set, missing) = (names(true).join(" and "), names(false).join(" and "));
                Err(Error::Refused(format!(
                    "the environment names only a part of a shop that runs elsewhere ({set}). Set {missing} too, or unset them all to use the stack \
                     of `cargo dev up`."
                )))
            }
        }
    }

    /// The addresses of a running stack.
    pub(crate) fn of(up: &Up) -> Result<Self, Error> {
        let url = |service: Kind| {
            let found = up.services.iter().find(|one| one.name == service.name);
            found.map(|one| one.url.clone()).ok_or_else(|| Error::Missing(format!("{} is not up", service.name)))
        };
        Ok(Self {
            commands: url(COMMANDS)?,
            projections: url(PROJECTIONS)?,
            internal: url(PROJECTIONS)?,
            database: up.database.address.clone(),
            kafka: up.kafka.address.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Result<Option<Addresses>, Error> {
        Addresses::given(|name| pairs.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned()))
    }

    const SERVICES: [(&str, &str); 2] = [("COMMANDS_URL", "http://shop/"), ("PROJECTIONS_URL", "http://shop")];
    const SERVERS: [(&str, &str); 2] = [("DATABASE_URL", "postgres://somewhere/cartlog"), ("KAFKA_BOOTSTRAP_SERVERS", "somewhere:9092")];

    #[test]
    fn given_needs_every_address_of_another_shop() {
        let all = given(&[SERVICES, SERVERS].concat()).unwrap().unwrap();
        assert_eq!((all.commands.as_str(), all.projections.as_str(), all.internal.as_str()), ("http://shop", "http://shop", "http://shop"));
        let behind_a_proxy = given(&[&SERVICES[..], &SERVERS, &[("INTERNAL_URL", "http://shop:8090/")]].concat()).unwrap().unwrap();
        assert_eq!(behind_a_proxy.internal, "http://shop:8090");
        assert_eq!(given(&SERVERS).unwrap(), None, "the servers alone are for `cargo dev up`");
        let error = given(&[SERVICES[0], SERVERS[0]]).unwrap_err().to_string();
        assert!(error.contains("(COMMANDS_URL and DATABASE_URL)"), "{error}");
        assert!(error.contains("Set PROJECTIONS_URL and KAFKA_BOOTSTRAP_SERVERS"), "{error}");
    }
}
