"""Controls of the tape's benchmarks: what a careful person writes by hand in NumPy, no engine.

An MLP with tanh hidden layers, softmax cross-entropy and an L2 penalty per layer. P is a list of
(weights, biases), lam one penalty per layer, X (batch, inputs), Y one-hot. `grad_*` return dL/dP;
`joint_*` return dL/dP, (d2L/dP2) V and (d2L/dP dlam) V for a direction V shaped like P. The plain
versions allocate; `Tuned` makes every buffer once and uses out= everywhere. A benchmark takes the
faster of the two.
"""

import numpy as np


def grad_plain(P, lam, X, Y):
    H = [X]
    for w, b in P[:-1]:
        H.append(np.tanh(H[-1] @ w + b))
    w, b = P[-1]
    Z = H[-1] @ w + b
    Z -= Z.max(axis=1, keepdims=True)
    E = np.exp(Z)
    dA = (E / E.sum(axis=1, keepdims=True) - Y) / len(X)
    G = [None] * len(P)
    for i in range(len(P) - 1, -1, -1):
        w, b = P[i]
        l2 = 2 * lam[i]
        G[i] = (H[i].T @ dA + l2 * w, dA.sum(axis=0) + l2 * b)
        if i:
            dA = (dA @ w.T) * (1 - H[i] * H[i])
    return G


def joint_plain(P, lam, X, Y, V):
    H = [X]
    D = [None]
    R = [None]
    B = len(X)
    n = len(P)
    for i, ((w, b), (vw, vb)) in enumerate(zip(P, V, strict=True)):
        A = H[-1] @ w + b
        RA = H[-1] @ vw + vb
        if i:
            RA += R[-1] @ w
        if i < n - 1:
            h = np.tanh(A)
            d = 1 - h * h
            H.append(h)
            D.append(d)
            R.append(d * RA)
    A -= A.max(axis=1, keepdims=True)
    E = np.exp(A)
    Pr = E / E.sum(axis=1, keepdims=True)
    dA = (Pr - Y) / B
    RdA = Pr * (RA - (Pr * RA).sum(axis=1, keepdims=True)) / B
    G = [None] * n
    HV = [None] * n
    LV = [None] * n
    for i in range(n - 1, -1, -1):
        w, b = P[i]
        vw, vb = V[i]
        l2 = 2 * lam[i]
        G[i] = (H[i].T @ dA + l2 * w, dA.sum(axis=0) + l2 * b)
        q = H[i].T @ RdA
        if i:
            q += R[i].T @ dA
        HV[i] = (q + l2 * vw, RdA.sum(axis=0) + l2 * vb)
        LV[i] = 2 * (np.vdot(w, vw) + np.vdot(b, vb))
        if i:
            dH = dA @ w.T
            RdH = RdA @ w.T + dA @ vw.T
            dA = dH * D[i]
            RdA = RdH * D[i] - 2 * dH * H[i] * R[i]
    return G, HV, LV


class Tuned:
    """The same with every buffer made once and out= everywhere."""

    def __init__(s, P, X, Y):
        dt = X.dtype
        B = len(X)
        s.n = len(P)
        e = lambda *sh: np.empty(sh, dt)
        sizes = [w.shape[1] for w, b in P]
        s.H = [None] + [e(B, k) for k in sizes]
        s.R = [None] + [e(B, k) for k in sizes]
        s.D = [None] + [e(B, k) for k in sizes]
        s.t = [None] + [e(B, k) for k in sizes]
        s.u = [None] + [e(B, k) for k in sizes]
        s.dH = [None] + [e(B, k) for k in sizes]
        s.RdH = [None] + [e(B, k) for k in sizes]
        s.G = [(e(*w.shape), e(*b.shape)) for w, b in P]
        s.HV = [(e(*w.shape), e(*b.shape)) for w, b in P]
        s.T = [e(*w.shape) for w, b in P]
        s.tb = [e(*b.shape) for w, b in P]
        s.c = e(B, 1)

    def grad(s, P, lam, X, Y):
        n = s.n
        H = s.H
        H[0] = X
        B = len(X)
        for i, (w, b) in enumerate(P):
            h = H[i + 1]
            np.matmul(H[i], w, h)
            np.add(h, b, h)
            if i < n - 1:
                np.tanh(h, h)
        Z = h
        c = s.c
        np.maximum.reduce(Z, 1, None, c, True)
        np.subtract(Z, c, Z)
        np.exp(Z, Z)
        np.add.reduce(Z, 1, None, c, True)
        np.divide(Z, c, Z)
        np.subtract(Z, Y, Z)
        np.divide(Z, B, Z)
        dA = Z
        for i in range(n - 1, -1, -1):
            w, b = P[i]
            gw, gb = s.G[i]
            l2 = 2 * lam[i]
            np.matmul(H[i].T, dA, gw)
            np.multiply(w, l2, s.T[i])
            np.add(gw, s.T[i], gw)
            np.add.reduce(dA, 0, None, gb)
            np.multiply(b, l2, s.tb[i])
            np.add(gb, s.tb[i], gb)
            if i:
                t = s.t[i]
                d = s.dH[i]
                np.matmul(dA, w.T, d)
                np.multiply(H[i], H[i], t)
                np.subtract(1, t, t)
                np.multiply(d, t, d)
                dA = d
        return s.G

    def joint(s, P, lam, X, Y, V):
        n = s.n
        H = s.H
        R = s.R
        D = s.D
        H[0] = X
        B = len(X)
        LV = [None] * n
        for i, ((w, b), (vw, vb)) in enumerate(zip(P, V, strict=True)):
            h = H[i + 1]
            r = R[i + 1]
            np.matmul(H[i], w, h)
            np.add(h, b, h)
            np.matmul(H[i], vw, r)
            np.add(r, vb, r)
            if i:
                t = s.t[i + 1]
                np.matmul(R[i], w, t)
                np.add(r, t, r)
            if i < n - 1:
                d = D[i + 1]
                np.tanh(h, h)
                np.multiply(h, h, d)
                np.subtract(1, d, d)
                np.multiply(r, d, r)
        Z = h
        c = s.c
        t = s.t[n]
        np.maximum.reduce(Z, 1, None, c, True)
        np.subtract(Z, c, Z)
        np.exp(Z, Z)
        np.add.reduce(Z, 1, None, c, True)
        np.divide(Z, c, Z)
        np.multiply(Z, r, t)
        np.add.reduce(t, 1, None, c, True)
        np.subtract(r, c, r)
        np.multiply(r, Z, r)
        np.divide(r, B, r)
        np.subtract(Z, Y, Z)
        np.divide(Z, B, Z)
        dA = Z
        RdA = r
        for i in range(n - 1, -1, -1):
            w, b = P[i]
            vw, vb = V[i]
            gw, gb = s.G[i]
            qw, qb = s.HV[i]
            l2 = 2 * lam[i]
            T = s.T[i]
            tb = s.tb[i]
            np.matmul(H[i].T, dA, gw)
            np.multiply(w, l2, T)
            np.add(gw, T, gw)
            np.add.reduce(dA, 0, None, gb)
            np.multiply(b, l2, tb)
            np.add(gb, tb, gb)
            np.matmul(H[i].T, RdA, qw)
            if i:
                np.matmul(R[i].T, dA, T)
                np.add(qw, T, qw)
            np.multiply(vw, l2, T)
            np.add(qw, T, qw)
            np.add.reduce(RdA, 0, None, qb)
            np.multiply(vb, l2, tb)
            np.add(qb, tb, qb)
            LV[i] = 2 * (np.vdot(w, vw) + np.vdot(b, vb))
            if i:
                t = s.t[i]
                s.u[i]
                d = s.dH[i]
                e = s.RdH[i]
                np.matmul(dA, w.T, d)
                np.matmul(RdA, w.T, e)
                np.matmul(dA, vw.T, t)
                np.add(e, t, e)
                np.multiply(e, D[i], e)
                np.multiply(d, H[i], t)
                np.multiply(t, R[i], t)
                np.multiply(t, 2, t)
                np.subtract(e, t, e)
                np.multiply(d, D[i], d)
                dA = d
                RdA = e
        return s.G, s.HV, LV
