"""What crosses the network: identities and signatures, records, their protobuf form, and every rule of a field."""
