//! What a deserialiser expected, in words for people: serde's messages without Rust's names, the input or positions.

/// What was expected, out of serde's message; the message as it is where it says no such thing.
pub(crate) fn of(message: &str) -> String {
    let message = without_position(message);
    // The last one: what comes before it may be quoted input.
    let expected = message.rsplit_once(", expected ").map_or(message, |(_, expected)| expected);
    match expected {
        "a string" | "string" | "a borrowed string" | "str" => "a string".to_owned(),
        "bool" | "a boolean" => "true or false".to_owned(),
        "char" | "a character" => "a single character".to_owned(),
        "f32" | "f64" | "floating point" => "a number".to_owned(),
        "u8" => within(u8::MIN, u8::MAX),
        "u16" => within(u16::MIN, u16::MAX),
        "u32" => within(u32::MIN, u32::MAX),
        "u64" | "usize" => within(u64::MIN, u64::MAX),
        "i8" => within(i8::MIN, i8::MAX),
        "i16" => within(i16::MIN, i16::MAX),
        "i32" => within(i32::MIN, i32::MAX),
        "i64" | "isize" | "an integer" => within(i64::MIN, i64::MAX),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "unit" => "null".to_owned(),
        _ if names_a_type(expected) => "an object".to_owned(),
        _ => expected.replace('`', ""),
    }
}

/// Without serde_json's ` at line 1 column 2`.
pub(crate) fn without_position(message: &str) -> &str {
    match message.rsplit_once(" at line ") {
        Some((before, position)) if position.contains(" column ") => before,
        _ => message,
    }
}

fn within(from: impl std::fmt::Display, to: impl std::fmt::Display) -> String {
    format!("a whole number from {from} to {to}")
}

/// Derived implementations expect "struct Name", "enum Name" and so on.
fn names_a_type(expected: &str) -> bool {
    ["struct ", "tuple struct ", "unit struct ", "enum ", "variant ", "struct variant ", "tuple variant ", "unit variant "]
        .iter()
        .any(|kind| expected.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn says_what_was_expected_and_nothing_of_rust_or_of_the_input() {
        for (message, expected) in [
            ("invalid type: integer `5`, expected a string at line 1 column 10", "a string"),
            ("invalid value: integer `-1`, expected u32", "a whole number from 0 to 4294967295"),
            ("invalid type: null, expected struct ItemBody at line 1 column 4", "an object"),
            (r#"invalid value: string "a, expected b", expected a decimal from 0 to 9"#, "a decimal from 0 to 9"),
            ("unknown variant `x`, expected one of `auto`, `json`", "one of auto, json"),
            ("a UUID of version 7", "a UUID of version 7"),
        ] {
            assert_eq!(of(message), expected);
        }
    }
}
