//! A message, and reading its value as JSON.

use serde::de::DeserializeOwned;

use super::error::InvalidMessage;

/// A message whose value is neither empty nor too large.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition's number.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; not empty.
    pub value: &'a [u8],
}

/// Reads a message's value as a JSON object. Fields that `T` lacks are ignored.
///
/// # Errors
/// If the value is no JSON object, or has another shape than `T`. The reason is serde's message with the path of the field.
pub fn json<T: DeserializeOwned>(message: &Message<'_>) -> Result<T, InvalidMessage> {
    // serde reads a struct from a list of its fields, too.
    if message.value.trim_ascii_start().starts_with(b"[") {
        return Err(InvalidMessage("the value must be a JSON object".into()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(message.value);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| match error.path().to_string().as_str() {
        "." | "?" => InvalidMessage(error.inner().to_string()),
        path => InvalidMessage(format!("{path}: {}", error.inner())),
    })?;
    deserializer.end().map_err(|error| InvalidMessage(error.to_string()))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Count {
        product: String,
        count: u32,
    }

    fn read(value: &[u8]) -> Result<Count, String> {
        json(&Message { topic: "counts", partition: 0, offset: 7, key: None, value }).map_err(|InvalidMessage(reason)| reason)
    }

    #[test]
    fn object_is_read_and_unknown_fields_are_ignored() {
        let count = Count { product: "tea".into(), count: 3 };
        assert_eq!(read(br#" {"product": "tea", "count": 3, "colour": {"of": ["tea"]}} "#), Ok(count));
    }

    #[test]
    fn reason_names_the_field() {
        for (value, reason) in [
            ("tea", "expected ident at line 1 column 2"),
            (r#"{"product":"tea","count":3}}"#, "trailing characters at line 1 column 28"),
            (r#"["tea", 3]"#, "the value must be a JSON object"),
            ("3", "invalid type: integer `3`, expected struct Count at line 1 column 1"),
            (r#"{"product":"tea"}"#, "missing field `count` at line 1 column 17"),
            (r#"{"product":"tea","count":-3}"#, "count: invalid value: integer `-3`, expected u32 at line 1 column 27"),
        ] {
            assert_eq!(read(value.as_bytes()), Err(reason.into()), "{value}");
        }
        assert!(read(b"{\"product\":\"\xff\",\"count\":3}").unwrap_err().starts_with("product: invalid unicode"));
    }
}
