"""From a checked job to what every attempt needs to know: defaults, paths, the site's rules."""
