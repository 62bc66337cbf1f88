//! A relay with nothing to do.

use std::{thread, time::Duration};

use crate::common::relay::Setup;

/// Time in which wake-ups are counted.
const WINDOW: Duration = Duration::from_secs(2);

/// Windows, of which the quietest counts: a thread that ends, or a page that is read from the disk,
/// is no work that repeats.
const WINDOWS: usize = 3;

/// Wake-ups a second of a relay with nothing to do: ten of the timer wheel, and half as many again
/// of the runtime and the look at the configuration file, which differ by the machine's load. A
/// wheel on a runtime costs twenty, and a second wheel as many again.
const MAX_WAKE_UPS: i64 = 25;

#[test]
fn an_empty_relay_is_woken_by_its_wheel_and_by_little_else() {
    let relay = Setup::new().start();
    let windows = (0..WINDOWS).map(|_| {
        let before = relay.process.wake_ups();
        thread::sleep(WINDOW);
        relay.process.wake_ups() - before
    });
    let quietest = windows.min().unwrap();
    // Each processor has a shard, which gives a sign of life once a second.
    let shards = i64::try_from(thread::available_parallelism().unwrap().get()).unwrap();
    let bound = (MAX_WAKE_UPS + shards) * i64::try_from(WINDOW.as_secs()).unwrap();
    assert!(quietest <= bound, "{quietest} wake-ups in {WINDOW:?}, more than {bound}");
}
