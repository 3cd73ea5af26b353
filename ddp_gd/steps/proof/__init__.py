"""Is what the shares compute what the whole is? Found out on real rows before the first update."""
