//! Figures: a name, a unit, a value.

use std::time::Duration;

use serde::Serialize;

/// One measured value.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// Durations of one kind of call.
#[derive(Debug, Clone, Default)]
pub struct Durations(Vec<Duration>);

impl Durations {
    /// Adds one.
    pub fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// The value below which `share` of them are, in milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let place = ((sorted.len() as f64 - 1.0) * share).round() as usize;
        sorted.get(place).map(|duration| duration.as_secs_f64() * 1e3).unwrap_or_default()
    }

    /// Median and 95th percentile as figures.
    pub fn figures(&self, name: &str) -> [Figure; 2] {
        [
            Figure { name: format!("{name}, p50"), unit: "ms", value: self.quantile(0.5) },
            Figure { name: format!("{name}, p95"), unit: "ms", value: self.quantile(0.95) },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut durations = Durations::default();
        for number in [5, 1, 3, 2, 4] {
            durations.add(Duration::from_millis(number));
        }
        assert_eq!(durations.quantile(0.5), 3.0);
        assert_eq!(durations.quantile(1.0), 5.0);
        assert_eq!(durations.quantile(0.0), 1.0);
        assert_eq!(Durations::default().quantile(0.5), 0.0);
    }
}
