//! Samples from a service's `/metrics`.

use std::collections::BTreeMap;

use embedded::error::{Error, chain};
use shop::services;

/// A sample's labels and value.
pub(super) type Sample = (BTreeMap<String, String>, f64);

/// Reads the samples of a metric from the service on a port of 127.0.0.1.
pub(super) async fn read(client: &reqwest::Client, port: u16, metric: &str) -> Result<Vec<Sample>, Error> {
    let answer = async { client.get(format!("{}/metrics", services::url(port))).send().await?.text().await };
    answer.await.map(|text| samples(&text, metric)).map_err(|error| Error::Http(chain(&error)))
}

fn samples(text: &str, metric: &str) -> Vec<Sample> {
    let of_metric = text.lines().filter_map(|line| {
        let sample = line.strip_prefix(metric)?;
        sample.strip_prefix(' ').map(|value| ("", value)).or_else(|| sample.strip_prefix('{')?.rsplit_once("} "))
    });
    let sample = |(labels, value): (&str, &str)| {
        let labels = labels.split("\",").filter_map(|label| label.split_once("=\""));
        let labels = labels.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect();
        Some((labels, value.parse().ok()?))
    };
    of_metric.filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_the_labels_and_the_value() {
        let text = "# TYPE lag gauge\nlag{topic=\"a\",partition=\"0\"} 3\nlag{topic=\"b\",partition=\"1\"} 0.5\nlagging{topic=\"c\"} 1\n";
        let found = samples(text, "lag");
        assert_eq!(found.iter().map(|(labels, value)| (labels["topic"].as_str(), *value)).collect::<Vec<_>>(), [("a", 3.0), ("b", 0.5)]);
        assert_eq!(samples("age_seconds 0.5\nage_seconds_max 7\n", "age_seconds"), [(BTreeMap::new(), 0.5)]);
    }
}
