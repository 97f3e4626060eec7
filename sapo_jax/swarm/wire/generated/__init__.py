"""Message classes that scripts/gen_protos.py makes from the schemas under protos/; not edited by hand."""
