//! Ids: UUIDs of version 7, made by the client.

use std::{fmt, str::FromStr};

use disintegrate::{IdentifierType, IdentifierValue, IntoIdentifierValue};
use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::{Uuid, Variant};

/// The rule that an id breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a UUID of version 7, such as 01890a5d-ac96-774b-bcce-b302099a8057")]
pub struct IdError;

/// The ids that [`parse`] accepts.
const PATTERN: &str = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-7[0-9A-Fa-f]{3}-[89ABab][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}$";

fn parse(text: &str) -> Result<Uuid, IdError> {
    // The hyphenated form only. `Uuid::parse_str` accepts URNs, braces and bare digits, too, which would give a cart several names.
    if text.len() != 36 {
        return Err(IdError);
    }
    let id = Uuid::parse_str(text).map_err(|_| IdError)?;
    (id.get_version_num() == 7 && id.get_variant() == Variant::RFC4122).then_some(id).ok_or(IdError)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Creates an id, as a client does.
            #[allow(clippy::new_without_default, reason = "a default id would be a constant")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// Returns the id as a UUID, as in the columns of the log.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// Takes an id from the log, which holds only valid ones.
            pub const fn from_log(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a UUID of version 7 as a string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl IntoIdentifierValue for $name {
            const TYPE: IdentifierType = IdentifierType::Uuid;
            fn into_identifier_value(self) -> IdentifierValue {
                IdentifierValue::Uuid(self.0)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Uuid)))
                    .description(Some("A UUID of version 7, made by the client."))
                    .pattern(Some(PATTERN))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

id!(
    /// A cart.
    CartId
);
id!(
    /// An item, unique within its cart.
    ItemId
);
id!(
    /// A product of the shop.
    ProductId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_a_uuid_of_version_7() {
        let id = CartId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        for wrong in [
            Uuid::new_v4().to_string(),
            Uuid::nil().to_string(),
            id.uuid().simple().to_string(),
            id.uuid().urn().to_string(),
            format!("{{{id}}}"),
            // Version 7, but another variant than RFC 9562's.
            "01890a5d-ac96-774b-fcce-b302099a8057".into(),
            String::new(),
            "cart-1".into(),
        ] {
            assert_eq!(wrong.parse::<CartId>(), Err(IdError), "{wrong}");
        }
    }
}
