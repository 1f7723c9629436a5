//! An event model as data, and its drawing. Knows no cart.
//!
//! The JSON form is the one that Martin Dilger's event modeling tools export as `config.json`. Its schema is public:
//! <https://github.com/dilgerma/event-modeling-spec>. The types here refuse a field that neither the schema nor an export has.
#![allow(missing_docs, reason = "the fields are those of the JSON form")]

mod drawing;
mod layout;

use serde::Deserialize;

pub use drawing::{Card, STYLE, board, svg};

/// A model: slices in the order of their story.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventModel {
    pub slices: Vec<Slice>,
    pub actors: Vec<Actor>,
    pub context: String,
    // The tools write and expect these; a model without aggregates has nothing to say in them.
    #[serde(default, rename = "flows")]
    _flows: serde::de::IgnoredAny,
    #[serde(default, rename = "aggregates")]
    _aggregates: serde::de::IgnoredAny,
    #[serde(default, rename = "codeGen")]
    _code_gen: serde::de::IgnoredAny,
    #[serde(default, rename = "boardId")]
    _board_id: serde::de::IgnoredAny,
    #[serde(default, rename = "sliceGroups")]
    _slice_groups: serde::de::IgnoredAny,
    #[serde(default, rename = "sliceImages")]
    _slice_images: serde::de::IgnoredAny,
}

impl EventModel {
    /// Reads a model.
    ///
    /// # Errors
    /// The text is no JSON, or a field is missing, unknown or of another type.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// Every command, event, read model, screen and processor, slice by slice.
    pub fn elements(&self) -> impl Iterator<Item = &Element> {
        self.slices.iter().flat_map(Slice::elements)
    }
}

/// One command, one read model, one automation or one translation.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Slice {
    pub id: String,
    pub status: String,
    pub index: usize,
    pub title: String,
    pub context: String,
    pub slice_type: SliceType,
    pub commands: Vec<Element>,
    pub events: Vec<Element>,
    pub readmodels: Vec<Element>,
    pub screens: Vec<Element>,
    pub processors: Vec<Element>,
    pub tables: Vec<Table>,
    pub specifications: Vec<Specification>,
    pub actors: Vec<Actor>,
    #[serde(default, rename = "aggregates")]
    _aggregates: serde::de::IgnoredAny,
    #[serde(default, rename = "screenImages")]
    _screen_images: serde::de::IgnoredAny,
}

impl Slice {
    pub fn elements(&self) -> impl Iterator<Item = &Element> {
        [&self.commands, &self.events, &self.readmodels, &self.screens, &self.processors].into_iter().flatten()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SliceType {
    StateChange,
    StateView,
    Automation,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Element {
    pub id: String,
    pub title: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The title of its slice.
    pub slice: String,
    pub context: Context,
    #[serde(default)]
    pub description: String,
    /// The route, with its parameters in braces.
    pub api_endpoint: Option<String>,
    /// The program that holds it.
    pub service: Option<String>,
    /// Whether a read model answers a list.
    #[serde(default)]
    pub list_element: bool,
    pub fields: Vec<Field>,
    pub dependencies: Vec<Dependency>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    Command,
    Event,
    Readmodel,
    Screen,
    Automation,
}

/// Whether an event is in the log, or a message of another system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Context {
    Internal,
    External,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Field {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub cardinality: Cardinality,
    #[serde(default)]
    pub example: String,
    #[serde(default)]
    pub subfields: Vec<Field>,
    #[serde(default)]
    pub optional: bool,
    /// Whether it is a tag of the event, or names what a route is about.
    #[serde(default)]
    pub id_attribute: bool,
    /// Whether the server makes it.
    #[serde(default)]
    pub generated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Cardinality {
    Single,
    List,
}

/// An arrow, as one of its two ends sees it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dependency {
    /// The element at the other end.
    pub id: String,
    #[serde(rename = "type")]
    pub direction: Direction,
    pub title: String,
    pub element_type: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub id: String,
    pub title: String,
    pub fields: Vec<Field>,
}

/// An example of what a slice does: given events, when a command, then events, a read model or an error.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Specification {
    pub id: String,
    pub title: String,
    pub slice_name: String,
    pub given: Vec<Step>,
    pub when: Vec<Step>,
    pub then: Vec<Step>,
    #[serde(default)]
    pub comments: Vec<Comment>,
    /// The command or read model that it is about.
    pub linked_id: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    pub id: String,
    pub index: usize,
    /// The title of its element, or the code of a refusal.
    pub title: String,
    #[serde(rename = "type")]
    pub kind: StepKind,
    /// The element. An error has none.
    pub linked_id: Option<String>,
    /// The fields whose values matter.
    #[serde(default)]
    pub fields: Vec<Field>,
    #[serde(default)]
    pub expect_empty_list: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepKind {
    SpecCommand,
    SpecEvent,
    SpecReadmodel,
    SpecError,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comment {
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Actor {
    pub name: String,
    pub auth_required: bool,
}
