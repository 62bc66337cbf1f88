//! Set of the values of a limit: it does not change, and one value takes no memory of its own.
//!
//! Most limits of subscribers name one session. A tree would allocate room for eleven, 192 bytes,
//! and each check of an event would read from there.
//!
//! May use: no other module.

use std::{collections::BTreeSet, slice};

/// Values without duplicates, in ascending order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ValueSet<T>(Values<T>);

/// A single value is always `One`, so that equal sets compare as equal.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Values<T> {
    One(T),
    Several(Box<[T]>),
}

impl<T> ValueSet<T> {
    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Iterates over the values in ascending order.
    pub(crate) fn iter(&self) -> slice::Iter<'_, T> {
        self.as_slice().iter()
    }

    fn as_slice(&self) -> &[T] {
        match &self.0 {
            Values::One(value) => slice::from_ref(value),
            Values::Several(values) => values,
        }
    }
}

impl<T: Ord> ValueSet<T> {
    /// Returns whether `value` is in the set.
    pub(crate) fn contains(&self, value: &T) -> bool {
        match &self.0 {
            Values::One(one) => one == value,
            Values::Several(values) => values.binary_search(value).is_ok(),
        }
    }

    /// Returns whether every value is in `other` as well.
    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.iter().all(|value| other.contains(value))
    }
}

impl<T> From<BTreeSet<T>> for ValueSet<T> {
    fn from(values: BTreeSet<T>) -> Self {
        let has_one = values.len() == 1;
        let mut values = values.into_iter();
        match values.next() {
            Some(value) if has_one => Self(Values::One(value)),
            first => Self(Values::Several(first.into_iter().chain(values).collect())),
        }
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for ValueSet<T> {
    fn from(values: [T; N]) -> Self {
        BTreeSet::from(values).into()
    }
}

impl<T: Ord> FromIterator<T> for ValueSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        BTreeSet::from_iter(values).into()
    }
}

impl<'a, T> IntoIterator for &'a ValueSet<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_set_answers_as_a_tree_does(
            values in prop::collection::vec(0_u8..12, 0..6),
            others in prop::collection::vec(0_u8..12, 0..6),
        ) {
            let (tree, other_tree): (BTreeSet<_>, BTreeSet<_>) =
                (values.iter().copied().collect(), others.iter().copied().collect());
            let set: ValueSet<u8> = values.iter().copied().collect();
            let other_set: ValueSet<u8> = others.into_iter().collect();
            prop_assert!(set.iter().eq(&tree) && set.len() == tree.len());
            prop_assert!((0..12).all(|value| set.contains(&value) == tree.contains(&value)));
            prop_assert_eq!(set.is_subset(&other_set), tree.is_subset(&other_tree));
            prop_assert_eq!(set == other_set, tree == other_tree);
            // One value is in the set itself, and has no allocation.
            prop_assert_eq!(matches!(set.0, Values::One(_)), tree.len() == 1);
        }
    }
}
