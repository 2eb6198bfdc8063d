"""Side-by-side measurements. `depth`: what a layer more costs, here and elsewhere."""
