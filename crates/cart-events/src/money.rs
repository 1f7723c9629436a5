//! Money: exact decimals, never floats. They are read from JSON strings or numbers, and written as strings with two decimals.

use std::{fmt, iter::Sum, str::FromStr};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The largest price, which is the largest value of the column numeric(12,2).
const MAX: Decimal = Decimal::from_parts(0xD4A5_0FFF, 0xE8, 0, false, 2);

/// The rule that a price breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a decimal from 0 to 9999999999.99 with at most 2 decimal places, such as \"9.99\"")]
pub struct PriceError;

/// The price of one item: from 0 to 9,999,999,999.99, in steps of 0.01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Price(Decimal);

/// A sum of prices. It is exact and may exceed the largest price.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Total(Decimal);

impl Price {
    /// Returns the exact value with two decimals.
    pub const fn decimal(self) -> Decimal {
        self.0
    }
}

impl TryFrom<Decimal> for Price {
    type Error = PriceError;

    /// # Errors
    /// If the value is outside of the range of a price, or finer than 0.01.
    fn try_from(mut value: Decimal) -> Result<Self, PriceError> {
        if value.is_sign_negative() || value > MAX {
            return Err(PriceError);
        }
        if value.scale() > 2 {
            return Err(PriceError);
        }
        value.rescale(2);
        Ok(Self(value))
    }
}

impl FromStr for Price {
    type Err = PriceError;

    /// Parses a price written as a JSON number: digits, an optional point and decimals, an optional exponent; no sign, no space.
    ///
    /// # Errors
    /// If the text is no such number, or no price.
    fn from_str(text: &str) -> Result<Self, PriceError> {
        // `Decimal` rounds longer numbers, so a longer text is refused. It also reads texts that are no JSON numbers, such as 1_0 and 1.e2.
        if text.len() > 28 || !is_number(text) {
            return Err(PriceError);
        }
        let value = match text.contains(['e', 'E']) {
            false => Decimal::from_str_exact(text),
            true => Decimal::from_scientific(text).map(|value| value.normalize()),
        };
        Self::try_from(value.map_err(|_| PriceError)?)
    }
}

/// Tells whether a text is digits, an optional point with decimals, and an optional exponent.
fn is_number(text: &str) -> bool {
    let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (number, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(number, exponent)| (number, Some(exponent)));
    let (whole, decimals) = number.split_once('.').map_or((number, None), |(whole, decimals)| (whole, Some(decimals)));
    let exponent = exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
    are_digits(whole) && decimals.is_none_or(are_digits) && exponent.is_none_or(are_digits)
}

impl<'a> Sum<&'a Price> for Total {
    fn sum<I: Iterator<Item = &'a Price>>(prices: I) -> Self {
        let mut sum: Decimal = prices.map(|price| price.0).sum();
        sum.rescale(2);
        Self(sum)
    }
}

impl From<Decimal> for Total {
    /// Takes a total that the database summed.
    fn from(mut sum: Decimal) -> Self {
        sum.rescale(2);
        Self(sum)
    }
}

macro_rules! written_with_two_decimals {
    ($name:ident, $description:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:.2}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:.2})"), self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($description))
                    .examples([serde_json::json!("9.99")])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}
written_with_two_decimals!(
    Price,
    "An exact decimal from 0 to 9999999999.99 with at most 2 decimal places; taken as a string or a number, answered as a string."
);
written_with_two_decimals!(Total, "An exact decimal with 2 decimal places.");

impl<'de> Deserialize<'de> for Price {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The raw text, so that a number never passes through a float.
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?.get();
        let text = match raw.as_bytes().first() {
            Some(b'"') => serde_json::from_str::<String>(raw).map_err(de::Error::custom)?,
            Some(b'0'..=b'9') => raw.to_owned(),
            _ => return Err(de::Error::custom(PriceError)),
        };
        text.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Total {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Decimal::from_str_exact(&text).map(Self::from).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn price_is_exact_and_written_with_two_decimals() {
        for (json, written) in [
            ("0", "0.00"),
            ("\"0\"", "0.00"),
            ("9.9", "9.90"),
            ("\"9.99\"", "9.99"),
            ("1e2", "100.00"),
            ("1.5e1", "15.00"),
            ("1.50E+1", "15.00"),
            ("\"150e-1\"", "15.00"),
            ("9999999999.99", "9999999999.99"),
            ("\"9999999999.99\"", "9999999999.99"),
            ("0.1", "0.10"),
        ] {
            let price: Price = serde_json::from_str(json).unwrap();
            assert_eq!(price.to_string(), written);
            assert_eq!(serde_json::to_string(&price).unwrap(), format!("\"{written}\""));
        }
    }

    #[test]
    fn what_is_no_price_is_refused_with_what_it_should_be() {
        for json in [
            "-1",
            "-0.01",
            "-0",
            "\"-1\"",
            "1.001",
            "\"1.001\"",
            "10000000000",
            "9999999999.991",
            "10000000000.00",
            "1e10",
            "1e-3",
            "1e400",
            "\"\"",
            "\" 1\"",
            "\"1 \"",
            "\"+1\"",
            "\"1,5\"",
            "\"0x1\"",
            "\"NaN\"",
            "\"1.\"",
            "\".5\"",
            "\"1_0\"",
            "\"1_0e1\"",
            "\"1e1_0\"",
            "\"1.e2\"",
            "\".5e1\"",
            "\"1e\"",
            "\"1e+\"",
            "\"1e+-2\"",
            "\"1e 2\"",
            "\"e2\"",
            "\"1e2e2\"",
            "\"1.5.5\"",
            "\"1e2.5\"",
            "\"١\"",
            "null",
            "true",
            "[]",
            "{}",
            "1.000000000000000000000000000000000001",
            "\"1\\u0000\"",
        ] {
            let error = serde_json::from_str::<Price>(json).unwrap_err().to_string();
            assert!(error.starts_with("must be a decimal from 0 to 9999999999.99"), "{json}: {error}");
        }
    }

    proptest! {
        #[test]
        fn every_price_is_read_as_written(cents in 0..=999_999_999_999_u64) {
            let (whole, rest) = (cents / 100, cents % 100);
            let price = format!("{whole}.{rest:02}");
            for text in [price.clone(), format!("{cents}e-2"), format!("{whole}.{rest:02}E+0"), format!("{whole}.{rest:02}0e0")] {
                for json in [text.clone(), format!("\"{text}\"")] {
                    prop_assert_eq!(serde_json::from_str::<Price>(&json).map(|read| read.to_string()).ok(), Some(price.clone()), "{}", json);
                }
            }
        }

        #[test]
        fn text_that_is_no_number_is_no_price(text in "[0-9._eE+\\-]{0,9}|[ -~]{0,9}|\\PC{0,4}") {
            // JSON has no leading zeros.
            let digits = text.trim_start_matches('0');
            let number = if digits.starts_with(|first: char| first.is_ascii_digit()) { digits.to_owned() } else { format!("0{digits}") };
            let is_number = text.starts_with(|first: char| first.is_ascii_digit())
                && number.ends_with(|last: char| last.is_ascii_digit())
                && serde_json::from_str::<&serde_json::value::RawValue>(&number).is_ok();
            if let Ok(price) = text.parse::<Price>() {
                prop_assert!(is_number, "{text:?} is read as {price}");
                prop_assert_eq!(price.to_string().parse(), Ok(price));
            }
        }
    }

    #[test]
    fn totals_are_exact() {
        let prices = ["0.10", "0.20", "9999999999.99"].map(|p| p.parse().unwrap());
        assert_eq!(prices.iter().sum::<Total>().to_string(), "10000000000.29");
        assert_eq!([].iter().sum::<Total>().to_string(), "0.00");
    }
}
