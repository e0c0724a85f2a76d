"""Evidence: watched predictions that are kept, with picture and map; how they are chosen, written, bounded, read and deleted."""
