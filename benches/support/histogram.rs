//! A compact histogram of durations, exact to 1.6 %.

/// Counts of values in buckets whose width grows with the value: 64 for each doubling.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    /// Returns an empty histogram.
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0 }
    }

    /// Adds one value.
    pub(crate) fn record(&mut self, value: u64) {
        let value = value.min(u64::from(u32::MAX));
        self.buckets[bucket(value)] += 1;
        self.count += 1;
    }

    /// Adds all values of another histogram.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    /// Returns the number of values.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the value that this part of all values does not exceed; 0 for an empty histogram.
    pub(crate) fn quantile(&self, part: f64) -> u64 {
        let rank = (part * self.count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let at = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        });
        at.map_or(0, middle)
    }
}

/// Returns the bucket of a value: values below 128 have their own; above, the seven leading bits
/// choose it.
fn bucket(value: u64) -> usize {
    let shift = value.max(1).ilog2().saturating_sub(6) as usize;
    shift * PER_DOUBLING + (value >> shift) as usize
}

/// Returns the middle of a bucket's values.
fn middle(bucket: usize) -> u64 {
    let shift = (bucket / PER_DOUBLING).saturating_sub(1);
    let lowest = ((bucket - shift * PER_DOUBLING) as u64) << shift;
    lowest + ((1 << shift) >> 1)
}

const PER_DOUBLING: usize = 64;

/// Enough for every `u32`.
const BUCKETS: usize = (u32::BITS as usize - 5) * PER_DOUBLING;

/// Returns a quantile of a histogram of microseconds in milliseconds.
pub(crate) fn millis(histogram: &Histogram, part: f64) -> f64 {
    histogram.quantile(part) as f64 / 1000.0
}
