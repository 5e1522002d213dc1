"""Ways to make one adapter of several: module by module, factors in and factors out."""
