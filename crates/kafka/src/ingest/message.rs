//! A message as a translation sees it.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use super::error::Poison;

/// A message that has a value, of a length that is read.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The topic it came from.
    pub topic: &'a str,
    /// The partition's number.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// The key, where there is one.
    pub key: Option<&'a [u8]>,
    /// The value; not empty.
    pub value: &'a [u8],
}

/// Reads a message's value as a JSON object. Fields that `T` does not have are ignored.
///
/// # Errors
/// Where it is none, or not of `T`'s shape: the reason names the field and says what it should be.
pub fn json<T: DeserializeOwned>(message: &Message<'_>) -> Result<T, Poison> {
    let text = std::str::from_utf8(message.value).map_err(|_| Poison("the value is not JSON: it is not UTF-8".into()))?;
    // serde reads a struct from a list of its fields too; a message is an object.
    let is_object = text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{');
    if !is_object && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Err(Poison("the value is not a JSON object".into()));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        if error.inner().to_string().starts_with(OUT_OF_RANGE) { out_of_range::<T>(text, &path) } else { reason(&path, error.inner()) }
    })?;
    deserializer.end().map_err(|error| reason(".", &error))?;
    Ok(value)
}

/// What serde_json says of a number that it cannot hold in any type, whatever the field is.
const OUT_OF_RANGE: &str = "number out of range";

/// What a field should be whose number is out of every range: as it is said of a value that is no number at all.
fn out_of_range<T: DeserializeOwned>(text: &str, field: &str) -> Poison {
    let said = || {
        // Unread values may hold any number.
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
        *fields.get_mut(field)? = RawValue::from_string("null".into()).ok()?;
        let text = serde_json::to_string(&fields).ok()?;
        let error = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(&text)).err()?;
        let is_of_it = error.path().to_string() == field;
        is_of_it.then(|| reason(field, error.inner()))
    };
    let Some(Poison(said)) = said() else { return Poison(format!("{field}: must be a number within its range")) };
    Poison(match said.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{field}: {OUT_OF_RANGE}, expected {expected}"),
        None => said,
    })
}

fn reason(path: &str, error: &serde_json::Error) -> Poison {
    let text = error.to_string();
    // Where a person looks is the field; line and column of a value without line breaks say little.
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    if !error.is_data() {
        return Poison(format!("the value is not JSON: {message}"));
    }
    // A producer need not know Rust's integers.
    let message = match message.rsplit_once(", expected ") {
        Some((found, "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64")) => format!("{found}, expected a whole number"),
        _ => message.replace('`', ""),
    };
    Poison(match path {
        "." | "?" => message,
        field => format!("{field}: {message}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Count {
        product: String,
        count: u32,
    }

    fn read(value: &str) -> Result<Count, Poison> {
        json(&Message { topic: "counts", partition: 0, offset: 7, key: None, value: value.as_bytes() })
    }

    #[test]
    fn an_object_is_read_and_unknown_fields_are_ignored() {
        let count = Count { product: "tea".into(), count: 3 };
        assert_eq!(read(r#" {"product": "tea", "count": 3, "colour": {"of": ["tea"]}} "#), Ok(count));
    }

    #[test]
    fn a_reason_names_the_field_and_what_it_should_be() {
        for (value, reason) in [
            ("tea", "the value is not JSON: expected ident"),
            ("{", "the value is not JSON: EOF while parsing an object"),
            (r#"{"product":"tea","count":3}}"#, "the value is not JSON: trailing characters"),
            (r#"["tea", 3]"#, "the value is not a JSON object"),
            ("3", "the value is not a JSON object"),
            ("null", "the value is not a JSON object"),
            (r#"{"product":"tea"}"#, "missing field count"),
            (r#"{"product":"tea","product":"tea","count":3}"#, "duplicate field product"),
            (r#"{"product":"tea","count":1e400}"#, "count: number out of range, expected a whole number"),
            (r#"{"product":"tea","count":-3}"#, "count: invalid value: integer `-3`, expected a whole number"),
        ] {
            assert_eq!(read(value), Err(Poison(reason.into())), "{value}");
        }
        let not_utf8 = Message { topic: "counts", partition: 0, offset: 7, key: None, value: b"{\"product\":\"\xff\",\"count\":3}" };
        assert_eq!(json::<Count>(&not_utf8), Err(Poison("the value is not JSON: it is not UTF-8".into())));
    }
}
