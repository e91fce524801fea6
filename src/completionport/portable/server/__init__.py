"""The cores of the servers, on the port's public interface."""
