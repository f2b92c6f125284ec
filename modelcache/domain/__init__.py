"""Names and values everything else is said in: refs, manifests, byte ranges, safe paths. No I/O."""
