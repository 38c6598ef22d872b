"""Clustered attention: Nyström's three tables joined per pair of clusters, without the inverse."""
