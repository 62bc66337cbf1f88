use super::*;

/// Lets so much time pass for what has been logged.
fn pass(registry: &mut Registry, time: Duration) {
    for sum in registry.news.values_mut() {
        sum.logged = sum.logged.checked_sub(time).unwrap();
    }
}

fn unlogged(registry: &Registry) -> Vec<(&str, News, u64)> {
    registry.news.iter().map(|((id, news), sum)| (&**id, *news, sum.deliveries)).collect()
}

#[test]
fn what_happens_over_and_over_is_logged_once_a_minute_with_its_sum() {
    let mut registry = Registry::default();
    for _ in 0..50 {
        registry.has_expired(9, &[Expired { id: "w".to_owned(), letters: 5, lost: 0 }]);
        registry.has_lost(&[Lost { id: "w".to_owned(), letters: 2, bound: Bound::Bytes }]);
        registry.log_sums();
    }
    let all_but_the_first = [("w", News::Expired, 245), ("w", News::Lost(Bound::Bytes), 98)];
    assert_eq!(unlogged(&registry), all_but_the_first);
    pass(&mut registry, LOG_EVERY);
    registry.log_sums();
    assert_eq!(unlogged(&registry), all_but_the_first.map(|(id, news, _)| (id, news, 0)), "logged");
    pass(&mut registry, LOG_EVERY);
    registry.log_sums();
    assert_eq!(unlogged(&registry), [], "and news again when it happens again");
}
