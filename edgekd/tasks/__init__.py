"""What networks are for: classification, regression, quantiles, segmentation."""
