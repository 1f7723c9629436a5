//! Texts and counts with the lengths and ranges of the event model.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::openapi::{
    ObjectBuilder, RefOr,
    schema::{Schema, Type},
};

/// The rule that a text or a count breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The length is out of range.
    #[error("must have from {min} to {max} characters")]
    Length {
        /// The smallest number of characters.
        min: usize,
        /// The largest number of characters.
        max: usize,
    },
    /// PostgreSQL's text holds every character but NUL.
    #[error("must not contain the NUL character")]
    Nul,
    /// The inventory is out of range.
    #[error("must be a whole number from 0 to 2147483647")]
    Inventory,
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $min:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = TextError;

            fn try_from(text: String) -> Result<Self, TextError> {
                if text.contains('\0') {
                    return Err(TextError::Nul);
                }
                // Characters, not bytes.
                if ($min..=$max).contains(&text.chars().take($max + 1).count()) {
                    Ok(Self(text))
                } else {
                    Err(TextError::Length { min: $min, max: $max })
                }
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new().schema_type(Type::String).min_length(Some($min)).max_length(Some($max)).into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// The description of an item: 1 to 1,000 characters.
    Description, 1, 1_000
);
text!(
    /// The address of an item's picture: 0 to 2,000 characters.
    Image, 0, 2_000
);

/// The inventory of a product: 0 to 2,147,483,647.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "i32")]
pub struct Inventory(i32);

impl<'de> Deserialize<'de> for Inventory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Inventory;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0 to 2147483647")
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Inventory, E> {
                Inventory::try_from(count).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Inventory, E> {
                Inventory::try_from(i64::try_from(count).unwrap_or(i64::MAX)).map_err(E::custom)
            }
        }
        deserializer.deserialize_i64(Visitor)
    }
}

impl Inventory {
    /// Out of stock.
    pub const OUT_OF_STOCK: Self = Self(0);
}

impl utoipa::PartialSchema for Inventory {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(i32::MAX)).into()
    }
}

impl utoipa::ToSchema for Inventory {}

impl TryFrom<i64> for Inventory {
    type Error = TextError;

    fn try_from(count: i64) -> Result<Self, TextError> {
        i32::try_from(count).ok().filter(|count| *count >= 0).map(Self).ok_or(TextError::Inventory)
    }
}

impl From<Inventory> for i32 {
    fn from(inventory: Inventory) -> i32 {
        inventory.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_has_1_to_1000_characters() {
        assert_eq!(Description::try_from(String::new()), Err(TextError::Length { min: 1, max: 1_000 }));
        assert!(Description::try_from("ß".repeat(1_000)).is_ok());
        assert_eq!(Description::try_from("ß".repeat(1_001)), Err(TextError::Length { min: 1, max: 1_000 }));
        assert_eq!(Description::try_from("a\0b".to_owned()), Err(TextError::Nul));
    }

    #[test]
    fn image_has_0_to_2000_characters() {
        assert!(Image::try_from(String::new()).is_ok());
        assert!(Image::try_from("x".repeat(2_001)).is_err());
    }

    #[test]
    fn inventory_is_a_whole_number_from_0() {
        assert_eq!(serde_json::from_str::<Inventory>("0").unwrap(), Inventory::OUT_OF_STOCK);
        assert_eq!(i32::from(serde_json::from_str::<Inventory>("2147483647").unwrap()), i32::MAX);
        for wrong in ["-1", "2147483648", "1.5", "\"1\"", "null", "99999999999999999999"] {
            assert!(serde_json::from_str::<Inventory>(wrong).is_err(), "{wrong}");
        }
    }
}
