//! Parser of Prometheus' text format, as far as the relay uses it.

/// The samples of one scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    samples: Vec<Sample>,
    /// Name and type of each family.
    pub(crate) families: Vec<(String, String)>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Parses a scrape.
    pub(crate) fn parse(text: &str) -> Self {
        let families =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let families = families.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(sample)
            .collect();
        Self { samples, families }
    }

    /// Returns the value of the sample with this name and at least these labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &Sample, (name, value): &(&str, &str)| {
            sample.labels.iter().any(|label| label.0 == *name && label.1 == *value)
        };
        let mut found = self.samples.iter().filter(|sample| sample.name == name);
        found
            .find(|sample| labels.iter().all(|label| has(sample, label)))
            .map(|sample| sample.value)
    }

    /// Returns the label names of a family's first sample.
    pub(crate) fn label_names(&self, name: &str) -> Option<Vec<&str>> {
        let sample = self.samples.iter().find(|sample| sample.name == name)?;
        Some(sample.labels.iter().map(|(name, _)| name.as_str()).collect())
    }

    /// Returns the type of a family.
    pub(crate) fn kind(&self, name: &str) -> Option<&str> {
        let family = self.families.iter().find(|family| family.0 == name)?;
        Some(&family.1)
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
    Sample {
        name: name.to_owned(),
        labels: labels
            .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
            .collect(),
        value: value.parse().unwrap(),
    }
}
