"""One step of the recurrent network, made of gates."""

from bptt.textbook.gates import Activation, AddGate, Floats, MultiplyGate, Tanh

multiply, add, tanh = MultiplyGate(), AddGate(), Tanh()


class RNNLayer:
    """One time step, s = φ(U x + W prev_s) and o = V s, and the values that flowed through it.

    The backward pass has two parts, because they are not run equally often: a loss enters by
    ``backward_output`` once, at its own step, and is then handed back from step to step by
    ``backward``. Shapes: U [H, C], W [H, H] and V [C, H], for H hidden units and C words.

    Args:
        activation: the nonlinearity φ.

    Attributes:
        add: a = U x + W prev_s, the input of φ, of shape [H].
        s: the state, of shape [H].
        mulv: the output o, scores that a softmax makes into probabilities, of shape [C].
    """

    def __init__(self, activation: Activation = tanh) -> None:
        self.activation = activation

    def forward(self, x: int, prev_s: Floats, U: Floats, W: Floats, V: Floats) -> None:
        """Run the step on word id x and the state of the step before."""
        self.prev_s = prev_s
        self.mulu = U[:, x]  # U times the one-hot column of x, without the product
        self.mulw = multiply.forward(W, prev_s)
        self.add = add.forward(self.mulw, self.mulu)
        self.s = self.activation.forward(self.add)
        self.mulv = multiply.forward(V, self.s)

    def backward_output(self, V: Floats, dmulv: Floats) -> tuple[Floats, Floats]:
        """Return (ds [H], dV [C, H]) from dmulv [C], the gradient at the output."""
        dV, ds = multiply.backward(V, self.s, dmulv)
        return ds, dV

    def backward(self, W: Floats, ds: Floats) -> tuple[Floats, Floats, Floats]:
        """Return (dprev_s [H], du [H], dW [H, H]) from ds [H], the gradient at the state.

        du is column x of dU. The other columns met a zero of the one-hot column and get nothing.
        """
        delta = self.activation.backward(self.add, ds)  # ∂L/∂a
        dmulw, du = add.backward(self.mulw, self.mulu, delta)
        dW, dprev_s = multiply.backward(W, self.prev_s, dmulw)
        return dprev_s, du, dW
