"""Networks of which each process holds a part: how they are taken apart, computed, judged, saved and put together."""
