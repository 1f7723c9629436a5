//! Routes: from the committed OpenAPI documents.

use std::fmt::Write as _;
use std::path::Path;

use embedded::error::Error;
use serde_json::Value;
use shop::services;

use super::sources::{cell, sentence, text, unreadable};

/// The document of a service.
pub(super) fn document(checkout: &Path, service: &str) -> Result<Value, Error> {
    let path = checkout.join("services").join(service).join("openapi.json");
    serde_json::from_str(&text(&path)?).map_err(|error| unreadable(&path, error.to_string()))
}

pub(super) fn table(checkout: &Path) -> Result<String, Error> {
    let mut routes: Vec<Route> = vec![];
    for service in services::ALL {
        for route in read(&document(checkout, service.name)?) {
            match routes.iter_mut().find(|known| known.is_like(&route)) {
                Some(known) => known.services.push(service.name),
                None => routes.push(Route { services: vec![service.name], ..route }),
            }
        }
    }
    // Routes that only one service has come first.
    routes.sort_by_key(|route| (route.services.len() > 1, services::ALL.iter().position(|service| route.services[0] == service.name)));
    let mut table = String::from("| service | listener | route | what it does | body | answer |\n| --- | --- | --- | --- | --- | --- |\n");
    let mut last = String::new();
    for Route { services: of, listener, call, what, body, answer } in routes {
        let of = if of.len() == services::ALL.len() { "every service".to_owned() } else { of.join(", ") };
        let shown = if of == last { "" } else { &of };
        let _ = writeln!(table, "| {shown} | {listener} | `{call}` | {} | {body} | {answer} |", cell(&what));
        last = of;
    }
    Ok(table)
}

struct Route {
    services: Vec<&'static str>,
    /// The proxy's listener; empty for a route that only the service's own port answers.
    listener: String,
    /// Method and path.
    call: String,
    what: String,
    body: String,
    answer: String,
}

impl Route {
    /// Tells whether another service's route is the same. `/lag` differs between services.
    fn is_like(&self, other: &Self) -> bool {
        (&self.call, &self.what, &self.body, &self.answer) == (&other.call, &other.what, &other.body, &other.answer)
    }
}

fn read(document: &Value) -> Vec<Route> {
    let none = serde_json::Map::new();
    let mut routes = vec![];
    for (path, methods) in document["paths"].as_object().unwrap_or(&none) {
        for (method, operation) in methods.as_object().unwrap_or(&none) {
            let code = |schema: Option<&Value>| schema.map(|schema| format!("`{}`", shape(document, schema))).unwrap_or_default();
            let content = |of: &Value| of["content"]["application/json"].get("schema").cloned();
            let summary = sentence(operation["summary"].as_str().unwrap_or_default());
            routes.push(Route {
                services: vec![],
                listener: operation["tags"][0].as_str().filter(|tag| *tag != "operations").unwrap_or_default().to_owned(),
                call: format!("{} {path}", method.to_uppercase()),
                what: summary.split_once(". ").map_or(summary.clone(), |(first, _)| format!("{first}.")),
                body: code(content(&operation["requestBody"]).as_ref()),
                answer: code(content(&operation["responses"]["200"]).as_ref()),
            });
        }
    }
    routes
}

/// A schema in a few words: `{cart_id, data: [{item_id}]}`.
fn shape(document: &Value, schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or_default();
        return shape(document, &document["components"]["schemas"][name]);
    }
    if let Some(choices) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        return choices.iter().map(|choice| shape(document, choice)).collect::<Vec<_>>().join(" or ");
    }
    if let Some(items) = schema["prefixItems"].as_array() {
        return format!("[{}]", items.iter().map(|item| shape(document, item)).collect::<Vec<_>>().join(", "));
    }
    if schema["items"].is_object() {
        return format!("[{}]", shape(document, &schema["items"]));
    }
    if let Some(fields) = schema["properties"].as_object() {
        let fields = fields.iter().map(|(name, field)| {
            let inner = shape(document, field);
            if inner.contains(['{', '[']) { format!("{name}: {inner}") } else { name.clone() }
        });
        return format!("{{{}}}", fields.collect::<Vec<_>>().join(", "));
    }
    match (&schema["type"], schema["format"].as_str()) {
        (Value::String(_), Some("uuid")) => "id".to_owned(),
        (Value::String(_), Some("int64")) => "position".to_owned(),
        (Value::String(name), _) => name.clone(),
        _ => "JSON".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shapes_name_the_fields_and_nest() {
        let id = json!({"type": "string", "format": "uuid"});
        let document = json!({"components": {"schemas": {"Item": {"properties": {"item_id": id}}}}});
        let cart = json!({"properties": {"cart_id": id, "data": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}}});
        assert_eq!(shape(&document, &cart), "{cart_id, data: [{item_id}]}");
        let answer = json!({"prefixItems": [id, {"type": "integer", "format": "int64"}], "items": false});
        assert_eq!(shape(&document, &answer), "[id, position]");
        assert_eq!(shape(&document, &json!({"oneOf": [{"$ref": "#/components/schemas/Item"}, {"type": "null"}]})), "{item_id} or null");
    }
}
