"""Several treatments of false negatives under the same budget: trained, measured and compared."""
