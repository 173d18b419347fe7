"""Times of the operators and networks beside their peers; README.md says how to read them."""
