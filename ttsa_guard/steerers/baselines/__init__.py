"""These steerers are published methods and obvious ideas that the default is compared with."""
