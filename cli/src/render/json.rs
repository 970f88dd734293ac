//! JSON as pgBackRest's readers expect it: keys sorted, one line, no newline at the end.

use serde_json::{Map, Value};

/// The same value with the keys of every object sorted.
#[must_use]
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(pairs))
        }
        other => other,
    }
}

/// The text of a value, keys sorted.
#[must_use]
pub fn to_text(value: Value) -> String {
    sorted(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_at_every_depth() {
        let value = json!([{"b": {"z": 1, "a": [ {"y": null, "x": true} ]}, "a": "t"}]);
        assert_eq!(to_text(value), r#"[{"a":"t","b":{"a":[{"x":true,"y":null}],"z":1}}]"#);
    }
}
