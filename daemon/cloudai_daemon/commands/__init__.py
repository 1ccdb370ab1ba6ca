"""One module per command of `cloudai`: arguments in, one call, answer out."""
