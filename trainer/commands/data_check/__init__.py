"""`data check`: the whole data set judged before it costs GPU time; no model is loaded."""
