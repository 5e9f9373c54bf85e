//! The machine's own gauges, read when somebody looks and not before.

use std::sync::{Mutex, PoisonError};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::metrics::Metrics;

/// Reads CPU and memory, where the system lets us.
#[derive(Debug)]
pub struct Machine(Option<Mutex<System>>);

impl Default for Machine {
    fn default() -> Self {
        // The first reading is what the next one's CPU use is measured against.
        let what = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        match System::new_with_specifics(what) {
            Ok(system) => Self(Some(Mutex::new(system))),
            Err(error) => {
                tracing::warn!(%error, "the machine's CPU and memory cannot be read");
                Self(None)
            }
        }
    }
}

impl Machine {
    /// Brings the gauges up to date. CPU use is that since the last call.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn refresh(&self, metrics: &Metrics) {
        let Some(system) = &self.0 else { return };
        let mut system = system.lock().unwrap_or_else(PoisonError::into_inner);
        system.refresh_cpu_usage();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        metrics.cpu_percent.set(f64::from(system.global_cpu_usage()));
        metrics.memory_used.set(system.used_memory() as f64);
    }
}
